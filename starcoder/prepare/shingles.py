"""Token shingles of a text as a set of 32-bit hashes, and their MinHash signature.

A token is a run of ASCII letters, digits, `_` and bytes beyond ASCII; everything else separates. Source:
bigcode-dataset near_deduplication/, whose tokens are the same but for the bytes beyond ASCII. The native
library of `csrc/shingles.cpp` does the work where it was built, else numpy does, with equal results.
"""

import ctypes
import functools
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint32]  # a sorted set of shingle hashes
Indexes = npt.NDArray[np.int64]

_BYTE, _TOKEN, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD
_LARGEST = np.uint32(0xFFFFFFFF)
_COLUMNS = 512  # shingles at a time, so that 256 permutations of them stay in the cache


class Signer:
    """MinHash signatures of `num_permutations` numbers, drawn with `seed`."""

    def __init__(self, num_permutations: int, seed: int):
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, 2**32, (2, num_permutations), dtype=np.uint32)
        self._multipliers, self._offsets = drawn[0] | np.uint32(1), drawn[1]

    def sign(self, shingles: Hashes) -> Hashes:
        """The smallest value of each permutation; two sets agree in a share like their Jaccard."""
        signature = np.full(len(self._multipliers), _LARGEST)
        library = native()
        if library is not None:
            library.sc_signature(
                shingles.ctypes.data,
                len(shingles),
                self._multipliers.ctypes.data,
                self._offsets.ctypes.data,
                len(signature),
                signature.ctypes.data,
            )
            return signature
        for start in range(0, len(shingles), _COLUMNS):
            permuted = self._multipliers[:, None] * shingles[None, start : start + _COLUMNS]
            permuted += self._offsets[:, None]
            np.minimum(signature, permuted.min(axis=1), out=signature)
        return signature


def shingles(text: bytes, length: int) -> Hashes:
    """Hashes of all runs of `length` tokens; none if the text has fewer tokens."""
    library = native()
    if library is None:
        return _shingles_in_numpy(text, length)
    found = np.empty((len(text) + 1) // 2, np.uint32)
    return found[: library.sc_shingles(text, len(text), length, found.ctypes.data)].copy()


def common(pool: Hashes, bounds: Indexes, one: int, others: Indexes) -> Indexes:
    """How many values each of `others` shares with `one`; set i is `pool[bounds[i]:bounds[i + 1]]`."""
    counts = np.empty(len(others), np.int64)
    library = native()
    if library is not None:
        library.sc_common(
            pool.ctypes.data, bounds.ctypes.data, one, others.ctypes.data, len(others), counts.ctypes.data
        )
        return counts
    first = pool[bounds[one] : bounds[one + 1]]
    for place, other in enumerate(others):
        second = pool[bounds[other] : bounds[other + 1]]
        counts[place] = len(np.intersect1d(first, second, assume_unique=True))
    return counts


@functools.cache
def native() -> ctypes.CDLL | None:
    """The native library, or None where it was not built."""
    folder = Path(__file__).parent
    found = [folder / f"_native{suffix}" for suffix in reversed(EXTENSION_SUFFIXES)]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.sc_shingles.argtypes = [c_char_p, c_int64, c_int32, c_void_p]
    library.sc_shingles.restype = c_int64
    library.sc_signature.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, c_int32, c_void_p]
    library.sc_signature.restype = None
    library.sc_common.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p]
    library.sc_common.restype = None
    return library


def _shingles_in_numpy(text: bytes, length: int) -> Hashes:
    tokens = _token_hashes(np.frombuffer(text, np.uint8))
    count = len(tokens) - length + 1
    if count <= 0:
        return np.empty(0, np.uint32)
    sums = np.zeros(count, np.uint64)
    power = 1
    for offset in range(length):
        sums += tokens[offset : offset + count] * np.uint64(power)
        power = power * _TOKEN % 2**64
    return np.unique((_mixed(sums) >> np.uint64(32)).astype(np.uint32))


def _token_hashes(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """A polynomial of each token's bytes: differences of one running sum, divided by the start's power."""
    is_word = np.zeros(len(text) + 2, np.int8)
    is_word[1:-1] = _WORDS[text]
    steps = np.diff(is_word)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    sums = np.zeros(len(text) + 1, np.uint64)
    size = 1 << max(16, len(text).bit_length())
    np.cumsum((text.astype(np.uint64) + np.uint64(1)) * _powers(_BYTE, size)[: len(text)], out=sums[1:])
    return _mixed((sums[ends] - sums[starts]) * _powers(pow(_BYTE, -1, 2**64), size)[starts])


@functools.lru_cache(maxsize=2)
def _powers(base: int, size: int) -> npt.NDArray[np.uint64]:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(32))) * np.uint64(_MIX)
    values = (values ^ (values >> np.uint64(29))) * np.uint64(_MIX)
    return values ^ (values >> np.uint64(32))


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum() or byte == ord("_")


_WORDS = np.array([_is_word(byte) for byte in range(256)])
