"""Trimming gives free memory back behind each block of a pass that keeps for gradients, and only there."""

import ctypes
import platform
import re
from pathlib import Path

import pytest
import torch

from starcoder.kernels.memory import libc_function
from starcoder.model import causal
from starcoder.train import allocator
from tests.tiny import VARIANTS, make_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_trims_behind_each_block_where_gradients_are_wanted(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(allocator, "libc_function", lambda name, *types: calls.append)
    monkeypatch.setattr(allocator, "_LEAST_WIDTH", 1)
    model = make_model(variant)
    tokens, positions = torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None]
    with allocator.trimming(model):
        model(tokens, positions, causal())
        assert len(calls) == len(model.blocks)
        with torch.no_grad():
            model(tokens, positions, causal())
    model(tokens, positions, causal())
    assert len(calls) == len(model.blocks)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="holes are glibc's")
def test_memory_between_what_is_kept_goes_back_to_the_system() -> None:
    trim = libc_function("malloc_trim", ctypes.c_size_t)
    assert trim is not None
    tensors = [torch.ones(16 << 10) for _ in range(1024)]  # of 64 KiB, which come from the heap
    del tensors[::2]
    before = resident_bytes()
    trim(0)
    assert before - resident_bytes() > 16 << 20


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10
