"""Packs documents into rows of fixed length, without attention across them.

Rows are filled exactly: a document is cut where its row ends and goes on in a later one. Every random
choice is drawn from (seed, epoch, document, offset), so a position is all there is to resume from.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.tokenizer import Tokenizer
from starcoder.train.documents import FimSettings, cut_piece

IGNORE = -100  # the label of positions where nothing is learnt; torch's own default
MIN_PIECE_TOKENS = 32  # less room than this is padded: shorter pieces teach little and cost a kernel call


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents. Labels are the next token; positions restart with each document."""

    tokens_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    lengths: tuple[tuple[int, ...], ...]  # documents per row, padding as one of its own; each row adds to T

    @property
    def num_learnt(self) -> int:
        return int((self.labels_BT != IGNORE).sum())


@dataclass(frozen=True, slots=True)
class Lane:
    """Where one lane's next piece starts: lane `i` of `n` reads every n-th document of an epoch's order."""

    epoch: int = 0
    document: int = 0  # index among the lane's documents
    offset: int = 0  # characters into it


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the endless stream of rows the next one starts."""

    row: int
    lanes: tuple[Lane, ...]


class PackedDocuments:
    """Endless packed batches over `texts`, shuffled anew each epoch.

    Rows take turns over `num_lanes` documents being read at once, so that a batch is a mixture: rows of one
    document in one batch would make its gradient that document's.
    """

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        *,
        seq_length: int,
        fim: FimSettings,
        seed: int,
        num_lanes: int = 256,
    ):
        self.texts, self.tokenizer, self.seq_length = texts, tokenizer, seq_length
        self.fim, self.seed = fim, seed
        self._orders: dict[int, list[int]] = {}
        num_lanes = min(num_lanes, len(texts))
        self.resume(Position(0, (Lane(),) * num_lanes))

    @property
    def position(self) -> Position:
        return Position(self._row, tuple(self._lanes))

    def resume(self, position: Position) -> None:
        """Go on from `position`, as a stream that had come that far would."""
        self._row, self._lanes = position.row, list(position.lanes)

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch:
        """The next `rows` rows, of another length than usual if given; moves `position` past them."""
        length = seq_length or self.seq_length
        return stack([self._fill_row(length) for _ in range(rows)], length, self._pad)

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.sentinels.fim_pad
        return self.tokenizer.sentinels.eos if pad is None else pad

    def _fill_row(self, room: int) -> list[list[int]]:
        row: list[list[int]] = []
        lane = self._row % len(self._lanes)
        while room >= MIN_PIECE_TOKENS:
            tokens = self._next_piece(lane, room + 1)  # a piece of n tokens takes n - 1 positions
            if len(tokens) > 1:
                row.append(tokens)
                room -= len(tokens) - 1
        self._row += 1
        return row

    def _next_piece(self, lane: int, room: int) -> list[int]:
        at = self._lanes[lane]
        documents = self._order(at.epoch)[lane :: len(self._lanes)]
        index = documents[at.document]
        rng = random.Random(f"piece {self.seed} {at.epoch} {index} {at.offset}")
        piece = cut_piece(self.texts[index], at.offset, room, self.tokenizer, self.fim, rng)
        if piece.end < len(self.texts[index]):
            self._lanes[lane] = Lane(at.epoch, at.document, piece.end)
        elif at.document + 1 < len(documents):
            self._lanes[lane] = Lane(at.epoch, at.document + 1)
        else:
            self._lanes[lane] = Lane(at.epoch + 1)
        return piece.tokens

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self.texts)))
            random.Random(f"order {self.seed} {epoch}").shuffle(order)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]


def stack(rows: Sequence[Sequence[Sequence[int]]], seq_length: int, pad: int) -> Batch:
    """Rows of token lists -> one batch; a list of n tokens gives n - 1 positions and their labels."""
    tokens = torch.full((len(rows), seq_length), pad)
    labels = torch.full((len(rows), seq_length), IGNORE)
    positions = torch.zeros((len(rows), seq_length), dtype=torch.long)
    lengths = []
    for r, row in enumerate(rows):
        at = 0
        for piece in row:
            n = len(piece) - 1
            ids = torch.tensor(piece)
            tokens[r, at : at + n], labels[r, at : at + n] = ids[:-1], ids[1:]
            positions[r, at : at + n] = torch.arange(n)
            at += n
        rest = seq_length - at
        positions[r, at:] = torch.arange(rest)
        lengths.append((*(len(piece) - 1 for piece in row), *([rest] if rest else [])))
    return Batch(tokens, labels, positions, tuple(lengths))
