"""The native library takes no process down: few threads, forks, foreign weights, wrong indices."""

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import starcoder.kernels
from starcoder import checkpoint, plan
from starcoder.errors import CheckpointError
from starcoder.kernels import native
from starcoder.kernels.ops import native_linear, require_promise
from starcoder.kernels.packed import pack
from starcoder.kernels.step import NativeSegment
from starcoder.quantize import quantize_matrix
from tests.kernels.test_step import GROUPED, MULTI_QUERY, native_step, random_model
from tests.tiny import make_model

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")
HEADER = Path(starcoder.kernels.__file__).parent / "csrc" / "starcoder.h"
C_TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "ScLinear": native.Linear,
}


@pytest.mark.parametrize("name", ["Linear", "Block", "Model", "Step"])
def test_structures_mirror_the_header(name):
    """Field by field, in order: a sum of sizes would not see two that changed places."""
    text = re.sub(r"//[^\n]*", "", HEADER.read_text())
    body = re.search(r"typedef struct \{([^}]*)\} Sc" + name + ";", text)[1]
    found = []
    for line in filter(str.strip, body.split(";")):
        kind, names = re.fullmatch(r"\s*((?:const )?\w+)\s*(.*)", line, re.DOTALL).groups()
        for field in names.split(","):
            is_pointer = "*" in field
            expected = ctypes.c_void_p if is_pointer else C_TYPES[kind]
            found.append((field.strip(" *\n"), ctypes.sizeof(expected)))
    ours = [(field, ctypes.sizeof(kind)) for field, kind in getattr(native, name)._fields_]
    assert ours == found


def test_the_library_is_of_this_header():
    assert native.library().sc_abi() == native.abi_number() > 0


@pytest.mark.parametrize(
    ("segment", "rows"),
    [
        (NativeSegment([131], 0, range(2)), [0]),
        (NativeSegment([-1], 0, range(2)), [0]),
        (NativeSegment([5], 400, range(30)), [0]),
        (NativeSegment([5], 0, [60]), [0]),
        (NativeSegment([5], 0, [-1]), [0]),
        (NativeSegment([5], 16, [0]), [0]),
        (NativeSegment([5], 0, [0]), [1]),
        (NativeSegment([5], 0, [0]), [-1]),
    ],
    ids=["token", "negative token", "position", "block", "negative block", "table", "row", "negative row"],
)
def test_indices_outside_of_arrays_are_refused(segment, rows):
    with pytest.raises(IndexError, match="does not exist"):
        native_step(random_model(MULTI_QUERY)).run([segment], rows)


def test_rows_of_a_table_are_bounded():
    packed = quantize_matrix(torch.randn(20, 64), "int8")
    out, which = torch.empty(1, 64), (ctypes.c_int32 * 1)(20)
    from starcoder.kernels.ops import as_native

    status = native.library().sc_lookup(ctypes.byref(as_native(packed)), 1, which, out.data_ptr())
    with pytest.raises(IndexError):
        native.check(status, "a lookup")


def test_weights_that_break_the_promise_are_refused(tmp_path):
    """127 in every place would multiply wrongly on AVX2 alone, and silently."""
    integers = torch.full((16, 64), 127, dtype=torch.int8)
    broken = pack(
        integers, torch.ones(16, 1, dtype=torch.int8), torch.ones(16, dtype=torch.bfloat16), "int8", 64
    )
    with pytest.raises(CheckpointError, match="'a matrix' break the promise"):
        require_promise(broken, "a matrix")
    integers[:, ::2] = -127
    integers[:, 1::2] = 127
    fine = pack(
        integers, torch.ones(16, 1, dtype=torch.int8), torch.ones(16, dtype=torch.bfloat16), "int8", 64
    )
    require_promise(fine, "a matrix")

    checkpoint.save(make_model("bigcode"), tmp_path / "model")
    checkpoint.quantize_folder(tmp_path / "model", tmp_path / "int8", "int8")
    checkpoint.load(tmp_path / "int8")
    path = tmp_path / "int8" / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start + 4096 : start + 4098] = b"\x7f\x7f"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="break the promise"):
        checkpoint.load(tmp_path / "int8")


FEW_THREADS = """
import resource, sys, torch
from starcoder.kernels.ops import native_linear
from starcoder.quantize import quantize_matrix
torch.set_num_threads(1)
w, x = torch.randn(300, 256), torch.randn(5, 256)
expected = native_linear(x, w, threads=1)
import ctypes
libc = ctypes.CDLL(None)
kept = resource.getrlimit(resource.RLIMIT_AS)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 20), kept[1]))  # no room for a thread's stack
found = native_linear(x, w, threads=16)
resource.setrlimit(resource.RLIMIT_AS, kept)
print(torch.equal(found, expected))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_threads_that_cannot_be_made_are_done_without():
    done = subprocess.run([sys.executable, "-c", FEW_THREADS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


FORK = """
import os, signal, threading, torch
from starcoder.kernels.ops import native_linear
from tests.kernels.test_step import GROUPED, NativeSegment, native_step, random_model
torch.set_num_threads(1)
step = native_step(random_model(GROUPED))
segment = [NativeSegment(list(range(100)), 0, range(8))]
w, x = torch.randn(2000, 512), torch.randn(64, 512)
expected = step.run(segment, [99], threads=2)
ending = False
def compute():
    while not ending:
        step.run(segment, [99], threads=2)
        native_linear(x, w, threads=2)
thread = threading.Thread(target=compute)
thread.start()
statuses = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        fine = torch.equal(step.run(segment, [99], threads=2), expected)
        native_linear(x, w, threads=2)
        os._exit(0 if fine else 3)
    statuses.append(os.waitpid(child, 0)[1])
ending = True
thread.join()
assert torch.equal(step.run(segment, [99], threads=2), expected)
print(statuses)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_while_another_thread_computes():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=400)
    assert done.stdout == f"{[0] * 8}\n", done.stderr


def test_two_engines_do_not_wait_for_each_other():
    """While one call holds its workspace, another workspace computes."""
    model = random_model(GROUPED)
    steps = [native_step(model) for _ in range(2)]
    segment = [NativeSegment(list(range(100)), 0, range(8))]
    expected = steps[0].run(segment, [99], threads=1)
    results: list[bool] = []

    def compute(step) -> None:
        results.extend(torch.equal(step.run(segment, [99], threads=2), expected) for _ in range(20))

    threads = [threading.Thread(target=compute, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40
    assert steps[0]._workspace.handle != steps[1]._workspace.handle


def test_a_freed_workspace_ends_its_threads():
    before = threading_count()
    step = native_step(random_model(GROUPED))
    step.run([NativeSegment([1, 2, 3], 0, [0])], [2], threads=4)
    assert threading_count() == before + 3
    del step
    assert threading_count() == before


def threading_count() -> int:
    if not sys.platform.startswith("linux"):
        pytest.skip("counts threads as Linux shows them")
    return len(os.listdir("/proc/self/task"))


def test_memory_is_known_without_sysconf(monkeypatch):
    """Windows has no os.sysconf."""

    class Kernel32:
        @staticmethod
        def GlobalMemoryStatusEx(status):
            status._obj.total = 1 << 33

    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(ctypes, "windll", type("windll", (), {"kernel32": Kernel32}), raising=False)
    assert 0 < plan.machine_bytes() <= 1 << 33


def test_an_unknown_status_is_an_error():
    native.check(0, "x")
    for status, kind in ((-1, MemoryError), (-2, IndexError), (-3, RuntimeError)):
        with pytest.raises(kind):
            native.check(status, "x")
    assert native_linear(torch.ones(1, 4), torch.ones(3, 4)).tolist() == [[4.0, 4.0, 4.0]]
