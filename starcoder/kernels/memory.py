"""Memory for weights in large pages, where the system has them.

A step reads every weight once, so with pages of 4 KiB it also looks up an address for every 4 KiB: on the
machine of `benchmarks/results/decode.json` reading is 10 to 25 % faster from pages of 2 MiB. Linux gives them
to memory that asks, if it spans whole ones; matrices of a small model do not, so they are laid side by side.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

_LARGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # None: not Linux
_PIECE_BYTES = 64 << 20
_ALIGNMENT = 64  # bytes of a cache line
_CPU = torch.device("cpu")


class Arena:
    """Memory for tensors, of the CPU one behind the other. What is not written to takes none."""

    def __init__(self) -> None:
        self._piece: mmap.mmap | None = None
        self._end = 0  # of what is handed out of the piece

    def empty(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
        """As `torch.empty`; the memory lives as long as a tensor of its piece."""
        shape = torch.Size(shape)
        size_bytes = shape.numel() * dtype.itemsize
        if _LARGE_PAGES is None or size_bytes == 0 or device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        if self._piece is None or self._end + size_bytes > len(self._piece):
            self._piece, self._end = _new_piece(max(size_bytes, _PIECE_BYTES)), 0
        start, self._end = self._end, self._end + size_bytes + -size_bytes % _ALIGNMENT
        return torch.frombuffer(self._piece, dtype=dtype, count=shape.numel(), offset=start).view(shape)


def _new_piece(size_bytes: int) -> mmap.mmap:
    piece = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert _LARGE_PAGES is not None, "only asked for where there are large pages"
    with contextlib.suppress(OSError):  # a kernel without them
        piece.madvise(_LARGE_PAGES)
    return piece


def read_in_large_pages(tensors: Iterable[Tensor]) -> None:
    """Ask for large pages where `tensors` over a map of a file are read; most file systems have none."""
    advise = libc_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if advise is None or _LARGE_PAGES is None:
        return
    for tensor in tensors:
        start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        advise(start, tensor.data_ptr() + tensor.nbytes - start, _LARGE_PAGES)  # refused: as good as before


@cache
def libc_function(name: str, *argument_types: type) -> "ctypes._NamedFuncPointer | None":
    """A function of the C library that returns an int; None where there is no such."""
    try:
        function: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library, or none by that name
        return None
    function.argtypes, function.restype = argument_types, ctypes.c_int
    return function
