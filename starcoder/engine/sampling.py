"""Sampling: from the logits of a step to one token per row.

The noise of a row is one number made from (seed, sample, position), so a seeded sample does not
depend on what else is in the batch. Everything runs batched on the logits' device; the drawn ids,
and logprobs where asked for, are all that crosses to the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.engine.constraint import Constraint
from starcoder.engine.healing import Healing
from starcoder.request import SamplingParams

_GREEDY = 1e-5  # temperatures up to here draw the best token; below, logits / temperature would overflow
_NUM_LIKELY = 1024  # tokens among which top-p is sought first
_MASK = 2**64 - 1


@dataclass(slots=True)
class Draw:
    """How one sample draws its tokens. `counts_V` appears when a penalty first needs it."""

    params: SamplingParams
    seed: int
    index: int = 0  # which of the request's n samples
    num_drawn: int = 0
    counts_V: Tensor | None = None  # how often each token was generated
    seen_V: Tensor | None = None  # whether each token is in the prompt or was generated
    constraint: Constraint | None = None  # what a grammar allows next
    healing: Healing | None = None  # the end of the prompt, while it is not spelled again
    end_ids: frozenset[int] = frozenset()  # that would end the sample; see `min_tokens`
    num_healed: int = 0  # drawn tokens that spelled nothing else; they are the prompt's

    @property
    def has_penalties(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0

    @property
    def is_early(self) -> bool:
        """Whether nothing may end the sample yet."""
        return self.num_drawn - self.num_healed < self.params.min_tokens and self.constraint is None

    @property
    def is_greedy(self) -> bool:
        """Whether the best token of the model's own distribution is always drawn."""
        plain = self.constraint is None and self.healing is None and not self.params.logit_bias
        plain = plain and not self.is_early
        return self.params.temperature <= _GREEDY and not self.has_penalties and plain

    def accept(self, token: int) -> bytes | None:
        """Follow the sample to a drawn token. What a token that heals brings; None from others: all of it."""
        healing = self.healing
        if healing is None:
            if self.constraint is not None:
                self.constraint.accept(token)
            return None
        new = healing.beyond(token)
        healing.accept(token)
        if healing.is_done:
            self.healing = None
        if not new:
            self.num_healed += 1
        elif self.constraint is not None:
            self.constraint.accept_bytes(new)
        return new


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn token. `logprob` and `top` are of the model's own distribution, where asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits_BV: Tensor,
    draws: Sequence[Draw],
    tokens: Sequence[Sequence[int]],
    best: Sequence[int] | None = None,
) -> list[Drawn]:
    """One token per row. Modifies `draws`: they count, and remember what penalties need.

    `tokens[row]` is the row's prompt and what was generated, the last `num_drawn` of them drawn here.
    `best` has the most likely token of each row where that is known already.
    """
    chosen, others = [0] * len(draws), []
    for row, draw in enumerate(draws):
        if draw.healing is not None:
            chosen[row] = _heal(logits_BV[row], draw, draw.healing)
        elif best is not None and draw.is_greedy:
            chosen[row] = best[row]
        else:
            others.append(row)
    if others:
        rest_RV = logits_BV if len(others) == len(draws) else logits_BV[others]
        found = _choose(rest_RV, [draws[row] for row in others], [tokens[row] for row in others])
        for row, token in zip(others, found, strict=True):
            chosen[row] = token
    for draw in draws:
        draw.num_drawn += 1
    result = [Drawn(token) for token in chosen]
    wanted = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if wanted:
        logprobs_RV = logits_BV[wanted].float().log_softmax(-1)
        _add_logprobs(result, wanted, logprobs_RV, [draws[row].params.logprobs or 0 for row in wanted])
    return result


def _heal(logits_V: Tensor, draw: Draw, healing: Healing) -> int:
    """A token among the few that spell the end of the prompt; penalties wait until it is spelled."""
    allowed_K = healing.allowed().to(logits_V.device)
    if draw.constraint is not None:
        beyond = map(healing.beyond, allowed_K.tolist())
        allowed_K = allowed_K[torch.tensor(draw.constraint.allows(beyond), device=logits_V.device)]
    logits_1K = logits_V[allowed_K][None]
    at = logits_1K.argmax(-1) if draw.params.temperature <= _GREEDY else _draw(logits_1K.float(), [draw])
    return int(allowed_K[at])


def _choose(logits_BV: Tensor, draws: Sequence[Draw], tokens: Sequence[Sequence[int]]) -> list[int]:
    """Biases, early ends, penalties and grammars, then the best token or one drawn at random."""
    penalized = [row for row, draw in enumerate(draws) if draw.has_penalties]
    constrained = [(row, draw.constraint) for row, draw in enumerate(draws) if draw.constraint is not None]
    biased = [row for row, draw in enumerate(draws) if draw.params.logit_bias]
    early = [row for row, draw in enumerate(draws) if draw.is_early]
    if penalized or constrained or biased or early:
        logits_BV = logits_BV.clone()
    for row in biased:
        ids, values = zip(*draws[row].params.logit_bias, strict=True)
        logits_BV[row, list(ids)] += torch.tensor(values, dtype=logits_BV.dtype, device=logits_BV.device)
    for row in early:
        ends = [token for token in draws[row].end_ids if token < logits_BV.size(-1)]
        logits_BV[row, ends] = float("-inf")
    for row in penalized:
        logits_BV[row] = _penalize(logits_BV[row], draws[row], tokens[row])
    for row, constraint in constrained:
        logits_BV[row] = constraint.allowed(logits_BV[row])
    drawn_B = logits_BV.argmax(-1)
    noisy = [row for row, draw in enumerate(draws) if draw.params.temperature > _GREEDY]
    if noisy:
        drawn_B[noisy] = _draw(logits_BV[noisy].float(), [draws[row] for row in noisy])
    for row in penalized:
        _remember(draws[row], drawn_B[row])
    found: list[int] = drawn_B.tolist()
    return found


def _penalize(logits_V: Tensor, draw: Draw, tokens: Sequence[int]) -> Tensor:
    """Source: Keskar et al. 2019, arXiv:1909.05858, for repetition; OpenAI's API for the other two."""
    p = draw.params
    if draw.counts_V is None or draw.seen_V is None:
        ids = torch.tensor(tokens, dtype=torch.long, device=logits_V.device)
        generated = ids[len(tokens) - draw.num_drawn + draw.num_healed :]
        draw.counts_V = torch.bincount(generated, minlength=logits_V.size(0)).to(logits_V.dtype)
        draw.seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
        draw.seen_V[ids] = True
    if p.repetition_penalty != 1:
        damped_V = torch.where(logits_V > 0, logits_V / p.repetition_penalty, logits_V * p.repetition_penalty)
        logits_V = torch.where(draw.seen_V, damped_V, logits_V)
    return logits_V - p.frequency_penalty * draw.counts_V - p.presence_penalty * (draw.counts_V > 0)


def _remember(draw: Draw, token: Tensor) -> None:
    assert draw.counts_V is not None and draw.seen_V is not None, "made when the row was penalized"
    draw.counts_V[token] += 1
    draw.seen_V[token] = True


def _draw(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Temperature, then top-k, top-p and min-p, then the inverse of the cumulative distribution."""
    device = logits_BV.device
    temperature_B1 = torch.tensor([[draw.params.temperature] for draw in draws], device=device)
    logits_BV = logits_BV - logits_BV.amax(-1, keepdim=True)  # so that a tiny temperature cannot overflow
    logits_BV = logits_BV / temperature_B1
    ks = [draw.params.top_k or logits_BV.size(-1) for draw in draws]
    if any(draw.params.top_k for draw in draws):
        logits_BV = _keep_top_k(logits_BV, ks)
    p_BV = logits_BV.softmax(-1)
    if any(draw.params.top_p < 1 for draw in draws):
        p_BV = _keep_top_p(p_BV, torch.tensor([[draw.params.top_p] for draw in draws], device=device))
    if any(draw.params.min_p for draw in draws):
        min_p_B1 = torch.tensor([[draw.params.min_p] for draw in draws], device=device)
        p_BV = torch.where(p_BV >= min_p_B1 * p_BV.amax(-1, keepdim=True), p_BV, 0.0)
    sums_BV = p_BV.cumsum(-1, dtype=torch.float64)  # in float32, 49,152 sums lose the last tokens
    noise_B1 = torch.tensor([[uniform(draw)] for draw in draws], dtype=torch.float64, device=device)
    # `right` steps over tokens of probability 0; noise below 1 keeps the target below the last sum.
    return torch.searchsorted(sums_BV, noise_B1 * sums_BV[:, -1:], right=True)[:, 0]


def _keep_top_k(logits_BV: Tensor, ks: Sequence[int]) -> Tensor:
    V = logits_BV.size(-1)
    most = min(V, max(k for k in ks if k < V)) if min(ks) < V else V
    top_BK = logits_BV.topk(most).values
    last_B1 = torch.tensor([[min(k, most) - 1] for k in ks], device=logits_BV.device)
    off_B1 = torch.tensor([[k >= V] for k in ks], device=logits_BV.device)
    keep_BV = off_B1 | (logits_BV >= top_BK.gather(1, last_B1))
    return logits_BV.masked_fill(~keep_BV, float("-inf"))


def _keep_top_p(p_BV: Tensor, top_p_B1: Tensor) -> Tensor:
    """The most probable tokens that together reach `top_p`; ties at the edge all stay."""
    # A few tokens nearly always reach it, and finding them costs a tenth of sorting 49,152. On a GPU the
    # look at the result would make the host wait, and sorting is fast.
    num_likely = min(p_BV.size(-1), _NUM_LIKELY if p_BV.device.type == "cpu" else p_BV.size(-1))
    best_BK = p_BV.topk(num_likely).values
    is_off_B1 = top_p_B1 >= 1
    if num_likely < p_BV.size(-1) and not bool((is_off_B1 | (best_BK.sum(-1, True) >= top_p_B1)).all()):
        best_BK = p_BV.sort(descending=True).values
    before_BK = best_BK.cumsum(-1) - best_BK
    last_B1 = (before_BK < top_p_B1).sum(-1, keepdim=True) - 1
    least_B1 = best_BK.gather(1, last_B1).masked_fill(is_off_B1, 0.0)
    return torch.where(p_BV >= least_B1, p_BV, 0.0)


def uniform(draw: Draw) -> float:
    """A number in [0, 1) from (seed, sample, position) alone: splitmix64 over the three.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    state = 0
    for part in (draw.seed, draw.index, draw.num_drawn):
        state = _mix(state ^ _mix((part + 0x9E3779B97F4A7C15) & _MASK))
    return (state >> 16) * 2.0**-48


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _add_logprobs(drawn: list[Drawn], rows: Sequence[int], logprobs_RV: Tensor, ks: Sequence[int]) -> None:
    chosen_R1 = torch.tensor([[drawn[row].token] for row in rows], device=logprobs_RV.device)
    chosen = logprobs_RV.gather(1, chosen_R1)[:, 0].tolist()
    top = logprobs_RV.topk(min(max(ks), logprobs_RV.size(-1)))
    ids, values = top.indices.tolist(), top.values.tolist()
    for at, (row, k) in enumerate(zip(rows, ks, strict=True)):
        best = tuple(zip(ids[at][:k], values[at][:k], strict=True))
        drawn[row] = Drawn(drawn[row].token, chosen[at], best)
