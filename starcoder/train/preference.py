"""Preference tuning: DPO on pairs of an accepted and a rejected completion, through the loop of all training.

The reference is the model with its adapter switched off, so that one model is in memory. A batch's rows are
pairs: the accepted document, then the rejected one.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from starcoder.adapters.adapter import Adapter
from starcoder.errors import ConfigError
from starcoder.model import Transformer, documents
from starcoder.tokenizer import Tokenizer
from starcoder.train.bins import pad_of
from starcoder.train.loop import Loss
from starcoder.train.packing import IGNORE, Batch, stack

_ROWS = 512  # positions whose logits exist at once
_ACCEPTED, _REJECTED = ("accepted", "chosen"), ("rejected",)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, in tokens; each ends with end-of-text unless it was cut."""

    prompt: list[int]
    accepted: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """One pair in each row. What it counts as learnt are pairs, over which DPO takes its mean."""

    @property
    def num_learnt(self) -> int:
        return len(self.lengths)


def dpo(adapter: Adapter, *, beta: float = 0.1) -> Loss:
    """The loss of preferring accepted completions, summed over pairs; `adapter` is that of the model trained.

    `beta` says how dear it is to leave the reference. Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        trained = log_likelihoods(model, batch)
        was_training = model.training
        model.eval()
        with torch.no_grad(), adapter.disabled():
            reference = log_likelihoods(model, batch)
        model.train(was_training)
        margins = (trained - reference).view(-1, 2)
        return -F.logsigmoid(beta * (margins[:, 0] - margins[:, 1])).sum()

    return loss


def log_likelihoods(model: Transformer, batch: Batch) -> Tensor:
    """Of what is learnt of each document, in nats: (documents,) float32, without holding all logits."""
    batch = batch.flat()
    device = model.norm.weight.device
    attend = documents(batch.lengths, model.config.sliding_window)
    hidden = model(batch.tokens_BT.to(device), batch.positions_BT.to(device), attend)[0]
    labels = batch.labels_BT[0].to(device)
    (lengths,) = batch.lengths
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    learnt = (labels != IGNORE).nonzero().squeeze(1)
    hidden, labels, owner = hidden[learnt], labels[learnt], owner[learnt]

    def part(h: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(model.head(h).float(), y, reduction="none")

    parts = zip(torch.split(hidden, _ROWS), torch.split(labels, _ROWS), strict=True)
    each = torch.cat([checkpoint(part, h, y, use_reentrant=False) for h, y in parts])
    return torch.zeros(len(lengths), device=device).index_add(0, owner, each)


class PreferencePairs:
    """Endless batches of pairs, shuffled anew each epoch; a pair takes at most `seq_length` positions."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer, *, seq_length: int, seed: int):
        if not pairs:
            raise ConfigError("there are no pairs to learn from", f"--seq-length is {seq_length}")
        self.pairs, self.seed, self._length = pairs, seed, seq_length
        self._pad = pad_of(tokenizer)
        self._epoch, self._start = 0, 0

    @property
    def seq_length(self) -> int:
        return self._length

    def state(self) -> dict[str, Any]:
        """Where the next pair is."""
        return {"epoch": self._epoch, "start": self._start}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, as a stream that had come that far would."""
        self._epoch, self._start = state["epoch"], state["start"]

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch:
        """The next `rows` pairs; moves on past them."""
        assert seq_length in (None, self._length), "pairs are made for one length"
        chosen: list[Pair] = []
        while len(chosen) < rows:
            order = list(range(len(self.pairs)))
            random.Random(f"pairs {self.seed} {self._epoch}").shuffle(order)
            found = order[self._start : self._start + rows - len(chosen)]
            chosen += [self.pairs[number] for number in found]
            self._start += len(found)
            if self._start == len(order):
                self._epoch, self._start = self._epoch + 1, 0
        return self.collate(chosen)

    def collate(self, pairs: Sequence[Pair]) -> Batch:
        """One pair a row, the accepted document first."""
        rows = [[pair.prompt + pair.accepted, pair.prompt + pair.rejected] for pair in pairs]
        learnt = [
            [[False] * len(p.prompt) + [True] * len(end) for end in (p.accepted, p.rejected)] for p in pairs
        ]
        made = stack(rows, self._length, self._pad, learnt)
        return PairBatch(made.tokens_BT, made.labels_BT, made.positions_BT, made.lengths, made.padding)


def read_pairs(rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, seq_length: int) -> Iterator[Pair]:
    """Pairs of rows with `prompt` (infills: `prefix` and `suffix`), `accepted` or `chosen`, and `rejected`.

    A prompt too long loses its start; a pair of which nothing can be told apart is left out.

    Raises:
        ConfigError: a column is missing; the error lists those there are.
    """
    if not rows:
        raise ConfigError("the data holds no pairs", "each row has prompt, accepted and rejected")
    accepted, rejected = _column(rows[0], _ACCEPTED), _column(rows[0], _REJECTED)
    prompt = _column(rows[0], ("prompt", "prefix"))
    for row in rows:
        tokens = _prompt(row, prompt, tokenizer)
        ends = [[*tokenizer.encode(str(row[c])), tokenizer.sentinels.eos] for c in (accepted, rejected)]
        room = seq_length // 2 + 1
        ends = [end[: room - 1] for end in ends]  # one token of the prompt at least
        tokens = tokens[-(room - max(map(len, ends))) :]
        if ends[0] != ends[1]:
            yield Pair(tokens, *ends)


def _prompt(row: dict[str, Any], column: str, tokenizer: Tokenizer) -> list[int]:
    tokens = tokenizer.encode(str(row[column]))
    if not row.get("suffix"):
        return tokens or [tokenizer.sentinels.eos]
    return tokenizer.sentinels.infill(
        tokenizer.sentinels.order("psm"), tokens, tokenizer.encode(str(row["suffix"]))
    )


def _column(row: dict[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if name in row:
            return name
    raise ConfigError(f"the data has no column {names[0]!r}", f"its columns are {', '.join(row)}")
