"""Weights lie side by side in large pages, each tensor on its own for whoever uses it."""

import gc
from pathlib import Path

import pytest
import torch

from starcoder.kernels.memory import Arena, read_in_large_pages

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_page_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_tensors_of_a_room_never_overlap(dtype):
    arena = Arena()
    shapes = [(3, 5), (), (1, 70_000_000 // dtype.itemsize), (17,), (0, 4), (64, 64)]
    tensors = [arena.empty(shape, dtype).fill_(number) for number, shape in enumerate(shapes)]
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()
        assert bool((tensor == number).all()), "what was written later went elsewhere"
        assert tensor.data_ptr() % 64 == 0, "a cache line is never shared"


def test_a_tensor_outlives_its_room():
    tensors = [Arena().empty((1000,), torch.float32).fill_(number) for number in range(20)]
    gc.collect()
    assert [float(tensor.sum()) for tensor in tensors] == [1000.0 * number for number in range(20)]


def test_other_devices_have_their_own_memory():
    assert Arena().empty((2, 2), torch.uint8, torch.device("meta")).is_meta


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[never]" in LARGE_PAGES.read_text("ascii"),
    reason="this system gives no large pages to programs that ask",
)
def test_small_matrices_share_large_pages():
    arena, before = Arena(), large_page_bytes()
    matrices = [arena.empty((500, 1000), torch.uint8).fill_(1) for _ in range(40)]
    assert large_page_bytes() - before >= 10_000_000, "half of what was written, or the system has none left"
    assert sum(int(matrix[0, 0]) for matrix in matrices) == 40


def test_asking_for_large_pages_changes_no_byte_of_a_file(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 20_000)
    mapped = torch.from_file(str(path), shared=False, size=5_120_000, dtype=torch.uint8)
    read_in_large_pages([mapped[100:4_000_000], torch.empty(0)])
    assert bytes(mapped[:512].tolist()) == bytes(range(256)) * 2
