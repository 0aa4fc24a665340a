"""Samples are what the model would write: the kept keys and values change nothing."""

import pytest
import torch

from starcoder.model import Transformer, causal
from starcoder.train.examples import Example
from starcoder.train.samples import _start, complete
from tests.tiny import make_model


def recomputed(model: Transformer, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids = torch.tensor([tokens])
            hidden = model(ids, torch.arange(len(tokens))[None], causal(model.config.sliding_window))
            tokens.append(int(model.head(hidden[0, -1]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("variant", ["bigcode", "bigcode-multi-head", "starcoder2", "starcoder2-window"])
def test_completions_equal_recomputed_ones(variant: str) -> None:
    model, prompt = make_model(variant), list(range(30, 42))
    expected = recomputed(model, prompt, 12)
    assert complete(model, prompt, 12, ()) == expected
    assert complete(model, prompt, 12, {expected[4]}) == expected[: expected.index(expected[4]) + 1]


def test_a_sample_starts_where_something_is_to_be_written() -> None:
    assert _start(Example([0] * 10, [True] * 10)) == 5
    assert _start(Example([0] * 6, [False, False, True, True, False, True])) == 2, "not its end-of-text"
    assert _start(Example([0] * 7, [False, True, True, False, True, True, True])) == 4
