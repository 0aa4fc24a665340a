"""Packs whole examples into rows: none is cut, none attends to another, and little is left empty.

Rows are read a window at a time; a window's examples go where they fit best, longest first. The stream's
place is (epoch, window, rows given out): what a window holds follows from the seed.
"""

import logging
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.examples import Example, Format
from starcoder.train.packing import Batch, stack
from starcoder.train.shapes import Record, RowError
from starcoder.train.sources import Rows

log = logging.getLogger(__name__)

_WINDOW_ROWS = 64  # rows of examples looked at together: enough for bins 97 % full, soon made


class PackedExamples:
    """Endless batches of packed examples, in a new order each epoch.

    An epoch holds every document exactly once: its last batch may have fewer rows, and none of the next.
    """

    def __init__(self, rows: Rows, form: Format, tokenizer: Tokenizer, *, seq_length: int, seed: int):
        self.rows, self.form, self.seed, self._length = rows, form, seed, seq_length
        self.skipped: dict[int, str] = {}  # why records of some numbers cannot be shown
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
        """Continue from a `state`, as a stream that had come that far would."""
        self._epoch, self._start = int(state["epoch"]), int(state["start"])
        self._given, self._stop = int(state["given"]), self._start
        self._bins: list[list[Example]] | None = None

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch:
        """The next `rows` rows, or those that are left of the epoch; moves on past them.

        Raises:
            ConfigError: a whole epoch holds nothing to learn.
        """
        assert seq_length in (None, self._length), "examples are made for one length"
        found: list[list[Example]] = []
        num_ends = 0
        while len(found) < rows:
            row = self._next_row()
            if row is not None:
                found.append(row)
            elif found:
                break
            elif (num_ends := num_ends + 1) > 1:
                raise ConfigError("no document holds anything to learn", "lengthen --seq-length?")
        return self.collate(found)

    def num_rows(self, epoch: int) -> int:
        """Rows of an epoch, from packing all of it; the stream stays where it is."""
        total = start = 0
        while True:
            bins, stop = self._window(epoch, start)
            if stop == start:
                return total
            total, start = total + len(bins), stop

    def collate(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """Rows of examples as one batch."""
        tokens = [[example.tokens for example in row] for row in rows]
        learned = [[example.learned for example in row] for row in rows]
        return stack(tokens, self._length, self._pad, learned)

    def _next_row(self) -> list[Example] | None:
        """The next row; None where an epoch ends, and the next one begins after it."""
        while self._bins is None or self._given >= len(self._bins):
            start = self._start if self._bins is None else self._stop
            given = self._given if self._bins is None else 0
            bins, stop = self._window(self._epoch, start)
            if stop == start:
                self.restore({"epoch": self._epoch + 1, "start": 0, "given": 0})
                return None
            self._bins, self._start, self._stop, self._given = bins, start, stop, given
        self._given += 1
        return self._bins[self._given - 1]

    def _window(self, epoch: int, start: int) -> tuple[list[list[Example]], int]:
        """The bins of the window at `start` and where the next one starts: there at the end of the epoch."""
        examples: list[Example] = []
        size, stop = 0, start
        while size < _WINDOW_ROWS * self._length:
            found = self.rows.read(epoch, stop, 1)
            if not found:
                break
            stop += 1
            number, record = found[0]
            made = self._make(epoch, number, record)
            size += sum(len(example.tokens) for example in made)
            examples += made
        bins = best_fit(examples, self._length)
        random.Random(f"bins {self.seed} {epoch} {start}").shuffle(bins)
        return bins, stop

    def _make(self, epoch: int, number: int, record: Record) -> list[Example]:
        rng = random.Random(f"example {self.seed} {epoch} {number}")
        try:
            return self.form(record, self._length + 1, rng)
        except RowError as error:
            if number not in self.skipped:
                log.warning("skipped %s: %s", self.rows.place(number), error)
            self.skipped[number] = str(error)
            return []


def held_out(records: Sequence[Record], form: Format, stream: PackedExamples, tokens: int) -> list[Batch]:
    """Batches of up to `tokens` tokens of `records`, the same at every call."""
    examples: list[Example] = []
    size = 0
    for number, record in enumerate(records):
        if size >= tokens:
            break
        try:
            made = form(record, stream.seq_length + 1, random.Random(f"held out {number}"))
        except RowError as error:
            log.warning("skipped a record to validate on: %s", error)
            continue
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
