"""Greedy completions of a model that is being trained, to look at before and after.

Simple on purpose: one sequence at a time with its keys and values kept. The engine is for serving.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.model import Transformer, causal_attention
from starcoder.tokenizer import Tokenizer
from starcoder.train.examples import Example


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, what the model wrote after it, and what the document says."""

    prompt: str
    completion: str
    reference: str


class _Past:
    """Keys and values of the tokens so far, and attention over them."""

    def __init__(self, window: int | None):
        self._window, self._keys, self._values = window, dict[int, Tensor](), dict[int, Tensor]()

    def __call__(self, layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
        if layer not in self._keys:
            self._keys[layer], self._values[layer] = k_BTKH, v_BTKH
            return causal_attention(q_BTNH, k_BTKH, v_BTKH, self._window)
        keys = torch.cat([self._keys[layer], k_BTKH], dim=1)
        values = torch.cat([self._values[layer], v_BTKH], dim=1)
        self._keys[layer], self._values[layer] = keys, values
        start = 0 if self._window is None else max(0, keys.size(1) - self._window)
        q, k, v = (x.transpose(1, 2) for x in (q_BTNH, keys[:, start:], values[:, start:]))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=q.size(1) != k.size(1))
        return out.transpose(1, 2)


@torch.no_grad()
def complete(
    model: Transformer, prompt: Sequence[int], max_tokens: int, end_ids: Collection[int]
) -> list[int]:
    """The most probable tokens after `prompt`, up to `max_tokens` or one of `end_ids`, which is included."""
    was_training, device = model.training, model.norm.weight.device
    model.eval()
    past, out, new = _Past(model.config.sliding_window), list[int](), list(prompt)
    first = 0
    while len(out) < max_tokens and first + len(new) <= model.config.max_positions:
        positions = torch.arange(first, first + len(new), device=device)[None]
        hidden_BTD = model(torch.tensor([new], device=device), positions, past)
        first += len(new)
        token = int(model.head(hidden_BTD[0, -1]).argmax())
        out.append(token)
        new = [token]
        if token in end_ids:
            break
    model.train(was_training)
    return out


def sample(model: Transformer, tokenizer: Tokenizer, example: Example, max_tokens: int = 48) -> Sample:
    """Complete an example from where its last learned part begins; code from its middle."""
    at = _start(example)
    room = max(1, model.config.max_positions - max_tokens)
    prompt, reference = example.tokens[:at], example.tokens[at : at + max_tokens]
    written = complete(model, prompt[-room:], max_tokens, tokenizer.sentinels.end_ids)
    return Sample(*(tokenizer.decode(tokens) for tokens in (prompt, written, reference)))


def _start(example: Example) -> int:
    if all(example.learned):
        return max(1, len(example.tokens) // 2)
    learned = example.learned
    starts = [n for n in range(1, len(learned)) if learned[n] and not learned[n - 1]]
    # A dialogue's end-of-text stands by itself after the last turn; that turn is the one to write.
    long = [n for n in starts if n + 1 < len(learned) and learned[n + 1]]
    return (long or starts)[-1]
