"""The engine's promises: nothing shared, cut, batched, preempted or aborted changes what a request gets."""

import random

import pytest
import torch

from starcoder.engine.settings import EngineSettings
from starcoder.errors import CapacityError, ConfigError, RequestError
from starcoder.request import CompletionRequest, SamplingParams, collect
from tests.engine.small import VARIANTS, VOCAB, Letters, ask, greedy, make_engine, make_model

torch.set_num_threads(1)


def prompts(num, *, seed=0, longest=40):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCAB) for _ in range(rng.randrange(1, longest))] for _ in range(num)]


def tokens_of(engine, requests):
    """The tokens of each request's first sample, in order."""
    done = collect(engine.generate(requests))
    return [done[str(i)][0].tokens for i in range(len(requests))]


def drain(engine):
    chunks = []
    while not engine.is_idle:
        chunks += engine.step()
    return collect(chunks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_alone(variant, path):
    model = make_model(variant)
    texts = prompts(9)
    engine = make_engine(model, max_step_tokens=16, max_sequences=5)
    assert tokens_of(engine, [ask(text) for text in texts]) == [greedy(model, text) for text in texts]
    assert engine.stats().num_held_blocks == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_preempted_equals_undisturbed(variant, path):
    model = make_model(variant)
    texts = prompts(6, seed=1, longest=20)
    engine = make_engine(model, num_blocks=14)
    assert tokens_of(engine, [ask(text, max_tokens=24) for text in texts]) == [
        greedy(model, text, 24) for text in texts
    ]
    assert engine.stats().num_preemptions > 0


def test_a_preempted_stream_repeats_and_loses_nothing(model):
    engine = make_engine(model, num_blocks=12)
    ids = [engine.add(ask(text, max_tokens=24)) for text in prompts(4, seed=1, longest=20)]
    done = drain(engine)
    assert engine.stats().num_preemptions > 0
    for request_id in ids:
        [sample] = done[request_id]
        assert sample.text == Letters().decode(sample.tokens) and len(sample.tokens) == 24


def test_cached_equals_full(model, path):
    engine = make_engine(model)
    text = prompts(1, longest=40)[0] * 3
    [first] = tokens_of(engine, [ask(text)])
    for cut in (5, 17, len(text) - 1, len(text)):
        changed = [*text[:cut], 7, 8, 9]
        assert tokens_of(engine, [ask(changed)]) == [greedy(model, changed)]
    assert first == greedy(model, text)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_extending_by_k_tokens_computes_at_most_k_plus_1(model, k):
    engine = make_engine(model)
    text = [5] * 3 + list(range(1, 23))
    text += tokens_of(engine, [ask(text, max_tokens=6)])[0]
    before = engine.stats().computed_tokens
    typed = [*text, *range(60, 60 + k)]
    done = collect(engine.generate([ask(typed, max_tokens=1)]))
    assert engine.stats().computed_tokens - before <= k + 1
    assert done["0"][0].usage.cached_tokens >= len(text) - 1
    assert done["0"][0].tokens == greedy(model, typed, 1)


def test_samples_of_one_request_compute_its_prompt_once(model):
    engine = make_engine(model)
    text = list(range(1, 31))
    params = {"n": 5, "temperature": 1.0, "seed": 3, "max_tokens": 4}
    samples = collect(engine.generate([ask(text, **params)]))["0"]
    assert engine.stats().computed_tokens == 30 + 5 * 3
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4]
    assert len({sample.tokens for sample in samples}) > 1


def test_samples_beyond_the_limit_of_sequences_come_too(model):
    params = {"n": 7, "temperature": 1.0, "seed": 3}
    wide, narrow = make_engine(model), make_engine(model, max_sequences=2)
    assert collect(wide.generate([ask([1, 2, 3], **params)])).keys() == {"0"}
    a, b = (
        {one.index: one.tokens for one in collect(engine.generate([ask([1, 2, 3], **params)]))["0"]}
        for engine in (wide, narrow)
    )
    assert a == b and len(a) == 7


def test_a_seed_gives_the_same_whatever_else_runs(model):
    request = ask([1, 2, 3], temperature=1.0, seed=11, n=2, top_p=0.9)
    alone = collect(make_engine(model).generate([request]))["0"]
    crowd = [ask(text, temperature=1.0) for text in prompts(6)]
    together = collect(make_engine(model, max_step_tokens=8, max_sequences=3).generate([*crowd, request]))[
        "6"
    ]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_without_a_seed_samples_differ(model):
    engine = make_engine(model)
    results = {tokens_of(engine, [ask([1, 2, 3], temperature=2.0)])[0] for _ in range(5)}
    assert len(results) == 5


def test_stop_strings_and_end_tokens_end_a_sample(model):
    [tokens] = tokens_of(make_engine(model), [ask([9, 9, 4])])
    text = Letters().decode(tokens)
    engine = make_engine(model)
    [done] = collect(engine.generate([ask([9, 9, 4], stop=(text[3:5],))])).values()
    end = text.index(text[3:5])
    assert (done[0].text, done[0].finish_reason, done[0].stop) == (text[:end], "stop", text[3:5])
    [done] = collect(engine.generate([ask([9, 9, 4], stop_ids=(tokens[5],))])).values()
    end = tokens.index(tokens[5])
    assert (done[0].tokens, done[0].stop) == (tokens[:end], tokens[5])
    assert engine.stats().num_held_blocks == 0


def test_logprobs_come_with_their_tokens(model):
    [done] = collect(make_engine(model).generate([ask([1, 2], logprobs=2, max_tokens=3)])).values()
    assert tuple(one.token for one in done[0].logprobs) == done[0].tokens
    assert all(one.top[0] == (one.token, one.logprob) and len(one.top) == 2 for one in done[0].logprobs)


def test_abort_frees_blocks_at_once_and_is_told_with_the_next_step(model):
    engine = make_engine(model)
    request_id = engine.add(ask([1, 2, 3], n=2, temperature=1.0))
    for _ in range(3):
        engine.step()
    assert engine.stats().num_held_blocks > 0
    engine.abort(request_id)
    assert engine.stats().num_held_blocks == 0
    assert [(chunk.index, chunk.finish_reason) for chunk in engine.step()] == [(0, "abort"), (1, "abort")]
    assert engine.is_idle
    engine.abort(request_id)  # a second time does nothing


def test_abort_before_the_first_step_ends_every_sample(model):
    engine = make_engine(model)
    engine.abort(engine.add(ask([1, 2, 3], n=3)))
    assert [chunk.finish_reason for chunk in engine.step()] == ["abort"] * 3


def test_closing_generate_aborts_what_it_added_and_nothing_else(model):
    engine = make_engine(model)
    other = engine.add(ask([4, 5]))
    chunks = engine.generate([ask([1, 2, 3]), ask([1, 2])])
    next(chunks)
    chunks.close()
    assert drain(engine)[other][0].tokens == greedy(model, [4, 5])
    assert engine.stats().num_held_blocks == 0


def test_two_generates_at_once_get_their_own_chunks(model):
    engine = make_engine(model)
    texts = prompts(2)
    streams = [engine.generate([ask(text)]) for text in texts]
    got = [[], []]
    for _ in range(12):
        for stream, chunks in zip(streams, got, strict=True):
            chunks.append(next(stream))
    assert [tuple(chunk.tokens[0] for chunk in chunks) for chunks in got] == [greedy(model, t) for t in texts]


def test_generate_waits_where_add_refuses(model):
    engine = make_engine(model, max_queue=1, max_sequences=1)
    texts = prompts(4)
    assert tokens_of(engine, [ask(text) for text in texts]) == [greedy(model, text) for text in texts]
    engine.add(ask([1]))
    with pytest.raises(CapacityError):
        engine.add(ask([2]))


def test_the_newest_request_of_a_session_wins(model):
    engine = make_engine(model)
    old = engine.add(ask([1, 2, 3], session="editor"))
    bystander = engine.add(ask([1, 2, 3], session="other"))
    engine.step()
    new = engine.add(ask([1, 2, 3, 4], session="editor"))
    done = drain(engine)
    assert [done[i][0].finish_reason for i in (old, bystander, new)] == ["abort", "length", "length"]


def test_a_deadline_ends_what_runs_and_what_waits(model):
    now = [0.0]
    engine = make_engine(model, clock=lambda: now[0], max_sequences=1)
    running = engine.add(ask([1, 2, 3], deadline_ms=100))
    waiting = engine.add(ask([4, 5], deadline_ms=100))
    for _ in range(4):
        engine.step()
    now[0] = 0.1
    done = collect(engine.step())
    assert [done[i][0].finish_reason for i in (running, waiting)] == ["deadline", "deadline"]
    assert done[running][0].usage.decode_ms == pytest.approx(100)
    assert done[waiting][0].usage.queue_ms == pytest.approx(100)
    assert engine.is_idle and engine.stats().num_held_blocks == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask([]), "prompt is empty"),
        (ask([1] * 120, max_tokens=12), "120 tokens"),
        (ask([1], max_tokens=128), "max_tokens 128"),
        (ask([VOCAB]), "outside the vocabulary"),
        (CompletionRequest(sampling=SamplingParams()), "prompt is empty"),
    ],
)
def test_what_cannot_be_served_is_a_request_error(model, request_, message):
    engine = make_engine(model)
    with pytest.raises(RequestError, match=message):
        engine.add(request_)
    assert engine.is_idle


def test_settings_that_cannot_be_are_config_errors(model):
    with pytest.raises(ConfigError, match="max_queue is 0"):
        EngineSettings(max_queue=0)
    with pytest.raises(ConfigError, match="max_sequences 9"):
        EngineSettings(max_step_tokens=8, max_sequences=9)
    with pytest.raises(ConfigError, match="less than one block"):
        make_engine(model, num_blocks=0)


def test_text_prompts_go_through_prompts_build(model):
    request = CompletionRequest(prefix="abc", sampling=SamplingParams(max_tokens=8, ignore_eos=True))
    assert tokens_of(make_engine(model), [request]) == [greedy(model, Letters().encode("abc"), 8)]


@pytest.mark.parametrize("seed", range(8))
def test_a_random_life_leaks_no_block_and_changes_no_answer(model, seed):
    rng = random.Random(seed)
    engine = make_engine(model, num_blocks=20, max_step_tokens=8, max_sequences=4)
    stems = prompts(3, seed=seed, longest=20)
    asked, chunks, aborted = {}, [], set()
    for _ in range(120):
        if rng.random() < 0.3:
            text = [*rng.choice(stems)[: rng.randrange(1, 20)], rng.randrange(1, VOCAB)]
            n = rng.choice([1, 1, 3])
            asked[engine.add(ask(text, n=n, priority=rng.randrange(2)))] = text, n
        if asked and rng.random() < 0.05:
            victim = rng.choice(list(asked))
            engine.abort(victim)
            aborted.add(victim)
        chunks += engine.step()
        engine._pool.check()
    while not engine.is_idle:
        chunks += engine.step()
    engine._pool.check()
    assert engine.stats().num_held_blocks == 0
    done = collect(chunks)
    assert done.keys() == asked.keys()
    for request_id, (text, n) in asked.items():
        assert len(done[request_id]) == n
        for one in done[request_id]:
            expected = greedy(model, text)
            assert one.tokens == expected[: len(one.tokens)]
            assert len(one.tokens) == len(expected) or request_id in aborted
