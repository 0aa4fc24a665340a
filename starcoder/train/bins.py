"""Packs whole examples into rows: none is cut, none attends to another, and little is left empty.

Rows are read a window at a time; a window's examples go where they fit best, longest first. The stream's
place is (epoch, window, rows given out): what a window holds follows from the seed.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.examples import Example, Format
from starcoder.train.packing import Batch, stack
from starcoder.train.sources import Row, Rows

_WINDOW_ROWS = 64  # rows of examples looked at together: enough for bins 97 % full, soon made


class PackedExamples:
    """Endless batches of packed examples, shuffled anew each epoch."""

    def __init__(self, rows: Rows, form: Format, tokenizer: Tokenizer, *, seq_length: int, seed: int):
        self.rows, self.form, self.seed, self._length = rows, form, seed, seq_length
        self._pad = pad_of(tokenizer)
        self.restore({"epoch": 0, "start": 0, "given": 0})

    @property
    def seq_length(self) -> int:
        return self._length

    @property
    def epoch(self) -> int:
        return self._epoch

    def state(self) -> dict[str, Any]:
        """Where the next row is."""
        return {"epoch": self._epoch, "start": self._start, "given": self._given}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, as a stream that had come that far would."""
        self._epoch, self._start = int(state["epoch"]), int(state["start"])
        self._given = int(state["given"])
        self._bins: list[list[Example]] | None = None

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch:
        """The next `rows` rows; moves on past them.

        Raises:
            ConfigError: a whole epoch holds nothing to learn.
        """
        assert seq_length in (None, self._length), "examples are made for one length"
        return self.collate([self._next_row() for _ in range(rows)])

    def collate(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Rows of examples as one batch."""
        tokens = [[example.tokens for example in row] for row in rows]
        learnt = [[example.learnt for example in row] for row in rows]
        return stack(tokens, self._length, self._pad, learnt)

    def _next_row(self) -> list[Example]:
        empty = 0
        while self._bins is None or self._given >= len(self._bins):
            if self._bins is not None:
                self._start, self._given = self._stop, 0
            if not self._read_window():
                empty += 1
                self.restore({"epoch": self._epoch + 1, "start": 0, "given": 0})
                if empty > 1:
                    raise ConfigError("no document holds anything to learn", "lengthen --seq-length?")
        self._given += 1
        return self._bins[self._given - 1]

    def _read_window(self) -> bool:
        """Make the bins of the window at `_start`; False at the end of the epoch."""
        examples: list[Example] = []
        size = 0
        self._stop = self._start
        while size < _WINDOW_ROWS * self._length:
            found = self.rows.read(self._epoch, self._stop, 1)
            if not found:
                break
            self._stop += 1
            number, row = found[0]
            made = self.make(number, row)
            size += sum(len(example.tokens) for example in made)
            examples += made
        self._bins = best_fit(examples, self._length)
        random.Random(f"bins {self.seed} {self._epoch} {self._start}").shuffle(self._bins)
        return self._stop > self._start

    def make(self, number: int, row: Row) -> list[Example]:
        """The examples of one row in the present epoch."""
        rng = random.Random(f"example {self.seed} {self._epoch} {number}")
        return self.form(row, self._length + 1, rng)


def held_out(rows: Sequence[Row], form: Format, stream: PackedExamples, tokens: int) -> list[Batch]:
    """Batches of up to `tokens` tokens of `rows`, the same at every call."""
    examples: list[Example] = []
    size = 0
    for number, row in enumerate(rows):
        if size >= tokens:
            break
        made = form(row, stream.seq_length + 1, random.Random(f"held out {number}"))
        examples += made
        size += sum(len(example.tokens) for example in made)
    bins = best_fit(examples, stream.seq_length)
    while len(bins) > 1 and sum(len(e.tokens) for row in bins for e in row) > tokens:
        bins.pop()
    return [stream.collate(bins[at : at + 4]) for at in range(0, len(bins), 4)]


def best_fit(examples: Sequence[Example], room: int) -> list[list[Example]]:
    """Bins of examples, longest first, tightest bin first; n tokens take n - 1 of `room` positions."""
    bins: list[list[Example]] = []
    free: list[tuple[int, int]] = []  # room left and number of each bin, sorted
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        size = len(example.tokens) - 1
        at = bisect_left(free, (size, -1))
        if at == len(free):
            bins.append([example])
            left, number = room - size, len(bins) - 1
        else:
            left, number = free.pop(at)
            bins[number].append(example)
            left -= size
        insort(free, (left, number))
    return bins


def pad_of(tokenizer: Tokenizer) -> int:
    """The padding token: never end-of-text where the vocabulary has one of its own."""
    pad = tokenizer.sentinels.fim_pad
    return tokenizer.sentinels.eos if pad is None else pad
