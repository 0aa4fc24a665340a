"""Preference tuning: DPO on pairs of an accepted and a rejected completion, through the loop of all training.

The reference is the model with its adapter switched off, so that one model is in memory. A batch's rows are
pairs: the accepted document, then the rejected one.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from starcoder.adapters.adapter import Adapter
from starcoder.chat import ChatTemplate
from starcoder.errors import ConfigError
from starcoder.model import Transformer, documents
from starcoder.tokenizer import Tokenizer
from starcoder.train.bins import pad_of
from starcoder.train.examples import Dialogues, Example, infill_prompt
from starcoder.train.loop import Loss
from starcoder.train.packing import IGNORE, Batch, stack
from starcoder.train.shapes import Conversation, Infill, Preference, Record
from starcoder.train.shapes import Pair as TextPair

_ROWS = 512  # positions whose logits exist at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, in tokens; each ends with end-of-text unless it was cut.

    Which tokens of a completion are learned is all of them if None: a conversation has others in between.
    """

    prompt: list[int]
    accepted: list[int]
    rejected: list[int]
    accepted_learned: list[bool] | None = None
    rejected_learned: list[bool] | None = None
    is_cut: bool = False

    @property
    def examples(self) -> tuple[Example, Example]:
        """The accepted document, then the rejected one."""

        def example(completion: list[int], learned: list[bool] | None) -> Example:
            mask = [False] * len(self.prompt) + (learned or [True] * len(completion))
            return Example(self.prompt + completion, mask, self.is_cut)

        return (
            example(self.accepted, self.accepted_learned),
            example(self.rejected, self.rejected_learned),
        )


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """One pair in each row. What it counts as learned are pairs, over which DPO takes its mean."""

    @property
    def num_learned(self) -> int:
        return int((self.labels_BT != IGNORE).any(1).sum())


def dpo(adapter: Adapter, *, beta: float = 0.1, start: Mapping[str, Tensor] | None = None) -> Loss:
    """The loss of preferring accepted completions, summed over pairs; `adapter` is that of the model trained.

    `beta` is the strength of the KL penalty towards the reference: the model below the adapter, or with the
    adapter's weights `start`. Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7.
    """

    def loss(model: Transformer, batch: Batch) -> Tensor:
        reference = _reference(model, batch, adapter, start)
        trained = log_likelihoods(model, batch)
        margins = (trained - reference).view(-1, 2)
        return (-F.logsigmoid(beta * (margins[:, 0] - margins[:, 1])) * is_pair(batch, margins)).sum()

    return loss


@torch.no_grad()
def _reference(
    model: Transformer, batch: Batch, adapter: Adapter, start: Mapping[str, Tensor] | None
) -> Tensor:
    """Log-likelihoods of the reference, which is computed first: weights must not change under a graph."""
    was_training = model.training
    model.eval()
    with adapter.disabled() if start is None else _started(adapter, start):
        found = log_likelihoods(model, batch)
    model.train(was_training)
    return found


@contextmanager
def _started(adapter: Adapter, start: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the adapter has the weights that it began with."""
    trained = {name: tensor.clone() for name, tensor in adapter.state().items()}
    adapter.load_state(start)
    try:
        yield
    finally:
        adapter.load_state(trained)


def is_pair(batch: Batch, like: Tensor) -> Tensor:
    """1 for each row that is a pair, 0 for rows that only fill a batch up."""
    return (batch.labels_BT != IGNORE).any(1).to(like)


def log_likelihoods(model: Transformer, batch: Batch) -> Tensor:
    """Of what is learned of each document, in nats: (documents,) float32, without holding all logits."""
    batch = batch.flat()
    device = model.norm.weight.device
    attend = documents(batch.lengths, model.config.sliding_window)
    hidden = model(batch.tokens_BT.to(device), batch.positions_BT.to(device), attend)[0]
    labels = batch.labels_BT[0].to(device)
    (lengths,) = batch.lengths
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    learned = (labels != IGNORE).nonzero().squeeze(1)
    hidden, labels, owner = hidden[learned], labels[learned], owner[learned]

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
        """The next `rows` pairs, or those that are left of the epoch; moves on past them."""
        assert seq_length in (None, self._length), "pairs are made for one length"
        order = list(range(len(self.pairs)))
        random.Random(f"pairs {self.seed} {self._epoch}").shuffle(order)
        found = order[self._start : self._start + rows]
        self._start += len(found)
        if self._start == len(order):
            self._epoch, self._start = self._epoch + 1, 0
        return self.collate([self.pairs[number] for number in found])

    def num_rows(self, epoch: int) -> int:
        """Pairs of an epoch."""
        return len(self.pairs)

    def collate(self, pairs: Sequence[Pair]) -> Batch:
        """One pair a row, the accepted document first."""
        rows = [[example.tokens for example in pair.examples] for pair in pairs]
        learned = [[example.learned for example in pair.examples] for pair in pairs]
        made = stack(rows, self._length, self._pad, learned)
        return PairBatch(made.tokens_BT, made.labels_BT, made.positions_BT, made.lengths, made.padding)


def read_pairs(
    records: Iterable[Record], tokenizer: Tokenizer, chat: ChatTemplate | None, seq_length: int
) -> Iterator[Pair]:
    """Pairs of tokens that together take at most `seq_length` positions.

    A prompt too long loses its start, of text and never a sentinel, or its oldest turns; completions keep up
    to three quarters of the room. A pair whose completions are the same then is left out.

    Raises:
        RowError: the chat template cannot show a conversation.
    """
    room = seq_length // 2 + 1  # a document of n tokens takes n - 1 positions
    for record in records:
        if not isinstance(record, Preference):
            continue
        sides = [Completion.of(one, tokenizer, chat) for one in (record.chosen, record.rejected)]
        limit = max(1, 3 * room // 4)
        longest = max(min(limit, len(side.tokens)) for side in sides)
        prompt = sides[0].prompt(room - longest)
        if prompt is None or not all(any(side.learned[:limit]) for side in sides):
            continue
        accepted, rejected = (side.tokens[:limit] for side in sides)
        is_cut = len(prompt) < sides[0].prompt_size or any(len(side.tokens) > limit for side in sides)
        if accepted != rejected:
            masks = [side.learned[:limit] for side in sides]
            yield Pair(prompt, accepted, rejected, masks[0], masks[1], is_cut)


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion in tokens, and its prompt in as many as there is room for."""

    tokens: list[int]
    learned: list[bool]
    prompt_size: int
    prompt: Callable[[int], list[int] | None]  # in at most so many tokens; None: it does not fit

    @classmethod
    def of(
        cls, record: TextPair | Infill | Conversation, tokenizer: Tokenizer, chat: ChatTemplate | None
    ) -> "Completion":
        """Raises: RowError: the chat template cannot show a conversation."""
        if isinstance(record, Conversation):
            assert chat is not None, "conversations come with a template"
            return cls._of_conversation(record, Dialogues(tokenizer, chat))
        eos = tokenizer.sentinels.eos
        if isinstance(record, Infill):
            order = tokenizer.sentinels.order("psm")
            ids, least = [*tokenizer.encode(record.middle), eos], tokenizer.sentinels.layout.num_sentinels

            def infill(room: int) -> list[int] | None:
                return infill_prompt(tokenizer, record, order, room)[0] if room > least else None

            return cls(ids, [True] * len(ids), len(infill(1 << 30) or ()), infill)
        ids = [*tokenizer.encode(record.completion), eos]
        prompt = tokenizer.encode(record.prompt) or [eos]
        return cls(ids, [True] * len(ids), len(prompt), lambda room: prompt[-room:] if room > 0 else None)

    @classmethod
    def _of_conversation(cls, record: Conversation, form: Dialogues) -> "Completion":
        def parts(one: Conversation) -> tuple[list[int], list[int], list[bool]]:
            ids, learned = form.encode(one)
            first = learned.index(True) if any(learned) else len(ids)
            return ids[:first], ids[first:], learned[first:]

        before, ids, learned = parts(record)

        def prompt(room: int) -> list[int] | None:
            found, rest = before, record
            while len(found) > room:
                start = 1 if rest.messages[0]["role"] == "system" else 0
                first_learned = next(
                    n
                    for n, message in enumerate(rest.messages)
                    if message["role"] == "assistant" and n not in rest.masked
                )
                if start + 1 >= first_learned:  # the last question alone does not fit
                    return None
                kept = (*rest.messages[:start], *rest.messages[start + 1 :])
                masked = frozenset(n - 1 for n in rest.masked if n > start)
                rest = replace(rest, messages=kept, masked=masked)
                if rest.messages[start]["role"] == "user":  # a dialogue begins with its user
                    found = parts(rest)[0]
            return found

        return cls(ids, learned, len(before), prompt)
