"""Draws follow the distribution asked for, and a row's draw depends on nothing but the row."""

import math

import pytest
import torch

from starcoder.engine.sampling import Draw, sample, uniform
from starcoder.request import SamplingParams

torch.set_num_threads(1)

V = 12


def draw(seed=0, index=0, **params):
    return Draw(SamplingParams(**params), seed, index)


def logits(rows=1, seed=0):
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def frequencies(row_V, num_draws=4000, temperature=1.0, **params):
    """How often each token is drawn, over seeds."""
    draws = [draw(seed, temperature=temperature, **params) for seed in range(num_draws)]
    drawn = sample(row_V.expand(num_draws, V), draws, [()] * num_draws)
    return torch.bincount(torch.tensor([one.token for one in drawn]), minlength=V) / num_draws


def assert_drawn_from(p_V, frequencies_V, num_draws=4000):
    """Chi-square far out in its tail: the draws are seeded, so this fails always or never."""
    possible = p_V > 0
    assert frequencies_V[~possible].sum() == 0
    chi_square = num_draws * ((frequencies_V - p_V) ** 2 / p_V)[possible].sum()
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 1


def test_temperature_0_is_the_best_token():
    rows = logits(5)
    drawn = sample(rows, [draw() for _ in range(5)], [()] * 5)
    assert [one.token for one in drawn] == rows.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature):
    row_V = logits()[0]
    assert_drawn_from((row_V / temperature).softmax(-1), frequencies(row_V, temperature=temperature))


def test_top_k_draws_from_the_k_best():
    row_V = logits()[0]
    kept_V = torch.full_like(row_V, -math.inf).scatter(0, row_V.topk(3).indices, row_V.topk(3).values)
    assert_drawn_from(kept_V.softmax(-1), frequencies(row_V, top_k=3))


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.7, 0.95])
def test_top_p_draws_from_the_fewest_that_reach_it(top_p):
    row_V = logits()[0]
    p_V, order = row_V.softmax(-1).sort(descending=True)
    p_V[p_V.cumsum(-1) - p_V >= top_p] = 0
    kept_V = torch.zeros(V).scatter(0, order, p_V / p_V.sum())
    assert_drawn_from(kept_V, frequencies(row_V, top_p=top_p))


def test_top_p_reaches_far_into_a_flat_distribution():
    flat = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1)) / 100
    p_V, order = flat[0].softmax(-1).sort(descending=True)
    kept = set(order[p_V.cumsum(-1) - p_V < 0.5].tolist())
    one = draw(temperature=1.0, top_p=0.5)
    drawn = {sample(flat, [one], [()])[0].token for _ in range(200)}
    assert 1024 < len(kept) < 5000 and drawn <= kept


def test_top_k_comes_before_top_p():
    row_V = torch.tensor([3.0, 2.0, 1.0] + [0.9] * (V - 3))
    assert frequencies(row_V, top_k=2, top_p=0.99)[2:].sum() == 0


def test_a_tiny_temperature_is_greedy():
    row_V = logits()[0]
    for temperature in (1e-30, 1e-4):
        assert frequencies(row_V, num_draws=50, temperature=temperature)[row_V.argmax()] == 1


def test_a_draw_does_not_depend_on_the_rest_of_the_batch():
    rows = logits(6)
    params = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 4},
        {},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "repetition_penalty": 1.5},
        {"logprobs": 2},
    ]
    together = sample(rows, [draw(i, **p) for i, p in enumerate(params)], [(1, 2)] * 6)
    alone = [sample(rows[i : i + 1], [draw(i, **p)], [(1, 2)])[0] for i, p in enumerate(params)]
    assert together == alone


def test_seed_sample_and_position_all_change_the_noise():
    noise = set()
    for seed in range(10):
        for index in range(10):
            for position in range(10):
                noise.add(uniform(Draw(SamplingParams(), seed, index, position)))
    assert len(noise) == 1000 and all(0 <= x < 1 for x in noise)
    assert abs(sum(noise) / 1000 - 0.5) < 0.05


def test_penalties_follow_their_formulas():
    row_V = logits()[0]
    prompt, generated = (0, 1), (2, 3, 3)
    one = draw(repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=-0.7, logprobs=0)
    one.num_drawn = len(generated)
    expected_V = row_V.clone()
    for token in {*prompt, *generated}:
        value = row_V[token]
        expected_V[token] = value / 1.3 if value > 0 else value * 1.3
    for token in set(generated):
        expected_V[token] -= 0.4 * generated.count(token) - 0.7
    [drawn] = sample(row_V[None], [one], [[*prompt, *generated]])
    assert drawn.token == int(expected_V.argmax())


def test_penalties_count_what_is_drawn():
    one, tokens = draw(presence_penalty=2.0), []
    flat_V = torch.linspace(0, 0.1, V)
    for _ in range(V):
        tokens.append(sample(flat_V[None], [one], [tokens])[0].token)
    assert sorted(tokens) == list(range(V)), "each is drawn once before any comes again"


def test_logprobs_are_the_models_own():
    rows = logits(2)
    draws = [draw(logprobs=3, temperature=0.5, presence_penalty=1.0), draw()]
    first, second = sample(rows, draws, [(1,), (1,)])
    expected = rows[0].log_softmax(-1)
    assert first.logprob == pytest.approx(float(expected[first.token]))
    assert [token for token, _ in first.top] == expected.topk(3).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(expected.topk(3).values.tolist())
    assert second.logprob is None


def test_logits_are_left_as_they_are():
    rows = logits(1)
    before = rows.clone()
    sample(rows, [draw(temperature=1.0, repetition_penalty=2.0, top_k=2)], [(1, 2)])
    assert torch.equal(rows, before)
