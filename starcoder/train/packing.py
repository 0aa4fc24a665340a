"""Packs documents into rows of fixed length, without attention across them.

Rows are filled exactly: a document is cut where its row ends and goes on in the next one. Every random
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
class Position:
    """Where in the endless stream of documents the next piece starts."""

    epoch: int = 0
    document: int = 0  # index in this epoch's order
    offset: int = 0  # characters into it


class PackedDocuments:
    """Endless packed batches over `texts`, shuffled anew each epoch."""

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        *,
        seq_length: int,
        fim: FimSettings,
        seed: int,
    ):
        self.texts, self.tokenizer, self.seq_length = texts, tokenizer, seq_length
        self.fim, self.seed = fim, seed
        self.resume(Position())

    def resume(self, position: Position) -> None:
        """Go on from `position`, as a stream that had come that far would."""
        self.position = position
        self._order = self._shuffle(position.epoch)

    def _shuffle(self, epoch: int) -> list[int]:
        order = list(range(len(self.texts)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)
        return order

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
        while room >= MIN_PIECE_TOKENS:
            tokens = self._next_piece(room + 1)  # a piece of n tokens takes n - 1 positions
            if len(tokens) > 1:
                row.append(tokens)
                room -= len(tokens) - 1
        return row

    def _next_piece(self, room: int) -> list[int]:
        at = self.position
        index = self._order[at.document]
        rng = random.Random(f"piece {self.seed} {at.epoch} {index} {at.offset}")
        piece = cut_piece(self.texts[index], at.offset, room, self.tokenizer, self.fim, rng)
        if piece.end < len(self.texts[index]):
            self.position = Position(at.epoch, at.document, piece.end)
        elif at.document + 1 < len(self._order):
            self.position = Position(at.epoch, at.document + 1, 0)
        else:
            self.position = Position(at.epoch + 1, 0, 0)
            self._order = self._shuffle(self.position.epoch)
        return piece.tokens


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
