"""Drafts change how many steps an answer takes and nothing else; where they are wrong they end."""

import random

import pytest
import torch

from starcoder.engine.drafts import Cost, Drafts, best_length
from starcoder.engine.settings import EngineSettings
from starcoder.errors import ConfigError
from starcoder.request import collect
from tests.engine.small import VARIANTS, VOCAB, ask, greedy, make_engine, make_model

torch.set_num_threads(1)

PHRASE = [11, 12, 13, 14, 15, 16, 17, 18]


@pytest.fixture(params=["right", "wrong", "mixed"])
def oracle(request, monkeypatch, model):
    """Drafts that are all right, all wrong, or right up to somewhere, whatever the model is."""
    rng = random.Random(0)

    def propose(self, tokens, room, num_sequences):
        guess = list(greedy(model, tokens, min(room, self._max_tokens)))
        wrong_from = {"right": len(guess), "wrong": 0, "mixed": rng.randrange(6)}[request.param]
        self._guess = [*guess[:wrong_from], *((token + 1) % VOCAB for token in guess[wrong_from:])]
        return self._guess

    monkeypatch.setattr(Drafts, "propose", propose)
    return request.param


def make_drafts(max_tokens, cost=0.0):
    """Drafts whose tokens cost this share of a step."""
    known = Cost()
    known.measured(1.0, 0)
    known.measured(1.0 + cost, 1)
    return Drafts(max_tokens, known)


def prompts(num, *, seed=0, longest=30):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB) for _ in range(rng.randrange(2, longest))] for _ in range(num)]


def tokens_of(engine, requests):
    done = collect(engine.generate(requests))
    return [done[str(i)][0].tokens for i in range(len(requests))]


def test_the_longest_match_is_drafted():
    drafts = make_drafts(4)
    assert list(drafts.propose([*PHRASE, 1, *PHRASE[:2]], 9)) == PHRASE[2:6]
    assert list(make_drafts(4).propose([1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3], 9)) == [9, 7, 2, 3]
    assert list(make_drafts(2).propose([2, 3, 9, 5, 2, 3, 8, 6, 2, 3], 9)) == [8, 6]


def test_what_was_never_there_is_not_drafted():
    assert list(make_drafts(4).propose(PHRASE, 9)) == []
    assert list(make_drafts(4).propose([1], 9)) == []


def test_drafts_stay_within_the_room_and_grow_with_the_text():
    drafts, tokens = make_drafts(8), [*PHRASE, 1, *PHRASE[:2]]
    assert list(drafts.propose(tokens, 3)) == PHRASE[2:5]
    assert list(drafts.propose(tokens, 0)) == []
    tokens += [30, 31, 32, 30, 31]
    assert list(drafts.propose(tokens, 2)) == [32, 30]


def test_wrong_guesses_shorten_drafts_to_none_and_right_ones_bring_them_back():
    drafts, tokens = make_drafts(8, 0.2), [*PHRASE, *PHRASE[:2]]
    lengths = []
    for _ in range(12):
        lengths.append(len(drafts.propose(tokens, 99)))
        drafts.learn([96])
    assert sorted(lengths, reverse=True) == lengths and lengths[0] > 0 == lengths[-1]
    for _ in range(40):
        drafts.propose(tokens, 99)
        drafts.learn([PHRASE[2]])
    assert list(drafts.propose(tokens, 99)) == PHRASE[2:] + PHRASE[:2]


@pytest.mark.parametrize(
    ("rate", "cost", "length"),
    [
        (0.5, 0.7, 0),
        (0.75, 0.7, 1),
        (1.0, 0.7, 8),
        (0.5, 0.0, 8),
        (0.5, 0.15, 2),
        (0.1, 0.15, 0),
        (0.0, 0.0, 0),
    ],
)
def test_a_draft_is_as_long_as_pays(rate, cost, length):
    assert best_length(rate, cost, 8) == length


def test_the_cost_of_a_draft_is_measured():
    cost = Cost()
    assert cost.of_token() is None
    cost.measured(0.9, 3)
    assert cost.of_token() is None
    cost.measured(0.5, 0)
    first = cost.of_token()
    cost.measured(0.9, 4)
    assert first > 0 and cost.of_token() == pytest.approx(0.2)
    cost.measured(0.5, 4)
    assert 0.15 < cost.of_token() < 0.2
    for _ in range(60):
        cost.measured(0.1, 4)
    assert cost.of_token() < 0.01


def test_a_draft_costs_more_where_many_decode_together():
    cost = Cost()
    cost.measured(1.0, 0)
    cost.measured(1.25, 1)
    assert [cost.of_token(num) for num in (1, 5)] == [0.25, 0.625]


def test_before_a_plain_step_was_measured_nothing_is_drafted():
    assert list(Drafts(4, Cost()).propose([*PHRASE, *PHRASE], 9)) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_speculative_equals_plain(variant, path):
    model = make_model(variant)
    texts = [[*text, *text] for text in prompts(6)]
    engine = make_engine(model, clock=lambda: 0.0, drafts=5, max_step_tokens=16, max_sequences=4)
    expected = [greedy(model, text, 24) for text in texts]
    tokens_of(engine, [ask([1])])  # alone, so that the cost is measured
    assert tokens_of(engine, [ask(text, max_tokens=24) for text in texts]) == expected
    assert engine.stats().drafted_tokens > 0 and engine.stats().num_held_blocks == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 24])
def test_drafts_right_or_wrong_change_no_answer(model, oracle, path, max_tokens):
    engine = make_engine(model, drafts=4)
    texts = prompts(4)
    requests = [ask(text, max_tokens=max_tokens) for text in texts]
    assert tokens_of(engine, requests) == [greedy(model, text, max_tokens) for text in texts]
    engine._pool.check()
    stats = engine.stats()
    assert stats.generated_tokens == 4 * max_tokens and stats.num_held_blocks == 0
    if oracle == "wrong":
        assert stats.accepted_tokens == 0
    if oracle == "right":
        assert stats.accepted_tokens == stats.drafted_tokens
        assert stats.num_steps <= 1 + -(-(max_tokens - 1) // 5)


def test_a_stop_within_a_draft_ends_there(model, oracle):
    expected = greedy(model, [9, 9, 4], 12)
    engine = make_engine(model, drafts=8)
    [[done]] = collect(engine.generate([ask([9, 9, 4], stop_ids=(expected[5],))])).values()
    assert done.tokens == expected[: expected.index(expected[5])]
    assert engine.stats().num_held_blocks == 0
    assert tokens_of(engine, [ask([9, 9, 4])]) == [expected]


def test_scarce_blocks_go_to_sequences_before_drafts(model, oracle):
    texts = prompts(6, seed=1, longest=20)
    expected = [greedy(model, text, 24) for text in texts]
    engine = make_engine(model, num_blocks=14, drafts=6)
    assert tokens_of(engine, [ask(text, max_tokens=24) for text in texts]) == expected
    assert engine.stats().num_preemptions > 0
    engine._pool.check()


def test_logprobs_are_those_of_plain_decoding(model, oracle):
    request = ask([1, 2, 3], logprobs=2)
    [[plain]] = collect(make_engine(model).generate([request])).values()
    [[drafted]] = collect(make_engine(model, drafts=4).generate([request])).values()
    for one, other in zip(plain.logprobs, drafted.logprobs, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-5)


@pytest.mark.parametrize("sampling", [{"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}])
def test_only_plain_greedy_requests_are_drafted_for(model, sampling):
    request = ask([*PHRASE, *PHRASE], **sampling)
    engine = make_engine(model, drafts=4)
    assert tokens_of(engine, [request]) == tokens_of(make_engine(model), [request])
    assert engine.stats().drafted_tokens == 0


def test_samples_of_one_request_may_be_drafted_for_together(model, oracle):
    engine = make_engine(model, drafts=3)
    done = collect(engine.generate([ask([1, 2, 3], n=3)]))["0"]
    assert [one.tokens for one in done] == [greedy(model, [1, 2, 3])] * 3


@pytest.mark.parametrize("seed", range(4))
def test_a_random_life_with_drafts_leaks_no_block_and_changes_no_answer(model, oracle, seed):
    rng = random.Random(seed)
    engine = make_engine(model, num_blocks=20, max_step_tokens=8, max_sequences=4, drafts=4)
    stems, asked, chunks, aborted = prompts(3, seed=seed, longest=20), {}, [], set()
    for _ in range(40):
        if rng.random() < 0.3:
            text = [*rng.choice(stems)[: rng.randrange(1, 20)], rng.randrange(1, VOCAB)]
            asked[engine.add(ask(text, n=rng.choice([1, 1, 3]), priority=rng.randrange(2)))] = text
        if asked and rng.random() < 0.05:
            victim = rng.choice(list(asked))
            engine.abort(victim)
            aborted.add(victim)
        chunks += engine.step()
        engine._pool.check()
    while not engine.is_idle:
        chunks += engine.step()
    assert engine.stats().num_held_blocks == 0
    done = collect(chunks)
    for request_id, text in asked.items():
        expected = greedy(model, text)
        for one in done[request_id]:
            assert one.tokens == expected[: len(one.tokens)]
            assert len(one.tokens) == len(expected) or request_id in aborted


def test_a_negative_length_is_a_config_error():
    with pytest.raises(ConfigError, match="drafts is -1"):
        EngineSettings(drafts=-1)
