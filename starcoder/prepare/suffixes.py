"""Sorts the word starts of a text by what follows them, and finds the longest match of a query among them.

A suffix array of word starts alone: a sixth of all positions. Suffixes that agree in their first `DEPTH`
bytes keep the order of their positions; a longer match is then looked for in the first `MOST_TIES` of them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

DEPTH = 1024  # bytes; a multiple of 8
MOST_TIES = 256

Positions = npt.NDArray[np.uint32]
# 0xFF is in no UTF-8 text: `attribution` writes it for the zero byte, which is no letter.
_WORDS = np.array(
    [b"\x80" <= byte < b"\xff" or byte.isalnum() or byte == b"_" for byte in (bytes([n]) for n in range(256))]
)
_CHUNK = 1 << 16


def word_starts(text: bytes) -> Positions:
    """Where runs of letters, digits, `_` and bytes beyond ASCII begin."""
    is_word = _WORDS[np.frombuffer(text, np.uint8)]
    is_start = is_word.copy()
    is_start[1:] &= ~is_word[:-1]
    return np.flatnonzero(is_start).astype(np.uint32)


def sort_suffixes(text: bytes) -> Positions:
    """The word starts, ordered by the bytes that follow them."""
    padded = np.frombuffer(text + bytes(DEPTH + 8), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 8)
    positions = word_starts(text)
    group = np.zeros(len(positions), np.int64)
    active = np.arange(len(positions))  # places of the suffixes that still share all bytes with another
    for depth in range(0, DEPTH, 8):
        if not len(active):
            break
        starts = positions[active]
        keys = np.ascontiguousarray(windows[starts + np.uint32(depth)]).view(">u8").ravel().astype(np.uint64)
        order = np.lexsort((keys, group)) if depth else np.argsort(keys, kind="stable")
        keys, group = keys[order], group[order]
        positions[active] = starts[order]
        is_new = np.ones(len(active), np.bool_)
        is_new[1:] = (keys[1:] != keys[:-1]) | (group[1:] != group[:-1])
        group = np.cumsum(is_new)
        is_tied = ~is_new
        is_tied[:-1] |= ~is_new[1:]
        active, group = active[is_tied], group[is_tied]
    return positions


class Suffixes:
    """The sorted suffixes of a text, ready to be searched; both may be memory-mapped."""

    def __init__(self, text: memoryview, order: memoryview):
        """`text` is bytes, `order` what `sort_suffixes` made of them, in 32-bit integers."""
        self._text, self._order = text, order

    def longest(self, query: bytes) -> int:
        """How many leading bytes of the query stand somewhere in the text, from a word start on."""
        probe = query[:DEPTH]
        place = bisect_left(self._order, probe, key=self._reader(len(probe)))
        neighbours = range(max(0, place - 1), min(len(self._order), place + 1))
        best = max((self._shared(query, self._order[one]) for one in neighbours), default=0)
        if best < DEPTH:
            return best
        return max(self._shared(query, position) for position in self._ties(probe))

    def places(self, query: bytes) -> list[int]:
        """Positions at which the whole query stands, in order."""
        if len(query) > DEPTH:
            ties = self._ties(query[:DEPTH])
            return sorted(one for one in ties if self._shared(query, one) == len(query))
        read = self._reader(len(query))
        low = bisect_left(self._order, query, key=read)
        high = bisect_right(self._order, query, lo=low, key=read)
        return sorted(self._order[low:high])

    def _ties(self, probe: bytes) -> Iterable[int]:
        read = self._reader(len(probe))
        low = bisect_left(self._order, probe, key=read)
        high = bisect_right(self._order, probe, lo=low, hi=min(low + MOST_TIES, len(self._order)), key=read)
        return self._order[low:high]

    def _reader(self, size: int) -> Callable[[int], bytes]:
        """Reads the first bytes of a suffix, as `bisect` asks for them."""
        text = self._text
        return lambda position: bytes(text[position : position + size])

    def _shared(self, query: bytes, position: int) -> int:
        """Leading bytes that the query and the suffix have in common."""
        done = 0
        while done < len(query):
            asked = query[done : done + _CHUNK]
            found = bytes(self._text[position + done : position + done + len(asked)])
            if asked != found:
                return done + _common_prefix(asked, found)
            done += len(asked)
        return done


def _common_prefix(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
