"""Packs documents into rows of fixed length, without attention across them.

Rows are filled exactly: a document is cut where its row ends and goes on in a later one. Every random
choice is drawn from (seed, epoch, document, offset), so a position is all there is to resume from.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from starcoder.tokenizer import Tokenizer
from starcoder.train.documents import cut_piece
from starcoder.train.settings import FimSettings

IGNORE = -100  # the label of positions where nothing is learned; torch's own default
MIN_PIECE_TOKENS = 32  # less room than this is padded: shorter pieces teach little and cost a kernel call


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents. Labels are the next token; positions restart with each document."""

    tokens_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    lengths: tuple[tuple[int, ...], ...]  # documents per row, padding as one of its own; each row adds to T
    padding: tuple[int, ...] = ()  # positions at each row's end that are padding; () where there are none

    @property
    def num_learned(self) -> int:
        return int((self.labels_BT != IGNORE).sum())

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return self.tokens_BT.numel() - sum(self.padding)

    def rows(self, start: int, stop: int | None = None, step: int = 1) -> "Batch":
        """Some of the rows, as a slice takes them."""
        part = slice(start, stop, step)
        tokens, labels, positions = (x[part] for x in (self.tokens_BT, self.labels_BT, self.positions_BT))
        return replace(
            self,
            tokens_BT=tokens,
            labels_BT=labels,
            positions_BT=positions,
            lengths=self.lengths[part],
            padding=self.padding[part],
        )

    @property
    def num_labels(self) -> int:
        """Positions whose next token is learned."""
        return int((self.labels_BT != IGNORE).sum())

    def padded(self, multiple: int) -> "Batch":
        """With rows of which nothing is learned, up to a multiple: processes in step all need their share."""
        count = -len(self.lengths) % multiple
        if not count:
            return self
        T = self.tokens_BT.size(1)
        last = self.tokens_BT[-1:].expand(count, T)
        return replace(
            self,
            tokens_BT=torch.cat([self.tokens_BT, last]),
            labels_BT=torch.cat([self.labels_BT, torch.full_like(last, IGNORE)]),
            positions_BT=torch.cat([self.positions_BT, torch.arange(T).expand(count, T)]),
            lengths=(*self.lengths, *[(1, T - 1)] * count),
            padding=(*self.padding, *[0] * count) if self.padding else (),
        )

    def flat(self) -> "Batch":
        """The same documents in one row (1, tokens) without padding: nothing is computed for it."""
        T = self.tokens_BT.size(1)
        padding = self.padding or (0,) * len(self.lengths)
        kept = [T - pad for pad in padding]

        def join(x_BT: Tensor) -> Tensor:
            return torch.cat([row[:n] for row, n in zip(x_BT, kept, strict=True)])[None]

        lengths = (row[:-1] if pad else row for row, pad in zip(self.lengths, padding, strict=True))
        joined = tuple(length for row in lengths for length in row)
        return Batch(join(self.tokens_BT), join(self.labels_BT), join(self.positions_BT), (joined,))


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

    def state(self) -> dict[str, Any]:
        """`position` as plain numbers, for a checkpoint."""
        return asdict(self.position)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.resume(Position(state["row"], tuple(Lane(**lane) for lane in state["lanes"])))

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


def stack(
    rows: Sequence[Sequence[Sequence[int]]],
    seq_length: int,
    pad: int,
    learned: Sequence[Sequence[Sequence[bool]]] | None = None,
) -> Batch:
    """Rows of token lists -> one batch; a list of n tokens gives n - 1 positions and their labels.

    `learned` has the shape of `rows` and says which tokens are to be learned; all of them if None.
    """
    tokens = torch.full((len(rows), seq_length), pad)
    labels = torch.full((len(rows), seq_length), IGNORE)
    positions = torch.zeros((len(rows), seq_length), dtype=torch.long)
    lengths, padding = [], []
    for r, row in enumerate(rows):
        at = 0
        for p, piece in enumerate(row):
            n = len(piece) - 1
            ids = torch.tensor(piece)
            tokens[r, at : at + n], labels[r, at : at + n] = ids[:-1], ids[1:]
            if learned is not None:
                labels[r, at : at + n][~torch.tensor(learned[r][p][1:])] = IGNORE
            positions[r, at : at + n] = torch.arange(n)
            at += n
        rest = seq_length - at
        positions[r, at:] = torch.arange(rest)
        lengths.append((*(len(piece) - 1 for piece in row), *([rest] if rest else [])))
        padding.append(rest)
    return Batch(tokens, labels, positions, tuple(lengths), tuple(padding))
