"""A healed completion continues the prompt's text, whatever tokens the prompt happened to end in."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.engine.cache import bytes_per_token
from starcoder.engine.engine import Engine
from starcoder.engine.healing import Healing, find_boundary
from starcoder.engine.settings import EngineSettings
from starcoder.files import bundled
from starcoder.prompts import build
from starcoder.request import CompletionRequest, Grammar, SamplingParams, collect
from starcoder.tokenizer import TokenIndex, Tokenizer
from tests.engine.small import whole_logits
from tests.tiny import make_model, make_tokenizer

torch.set_num_threads(1)

CODE = """def total(items):
    # don't we'll
    for item in items:
        yield item.price_12345 * 2


étoile = 'naïve ☕'
"""
PROMPTS = [CODE[:at] for at in (3, 7, 17, 18, 22, 25, 30, 44, 61, 70, 77, 95, 101, 112, 118, len(CODE))]


@cache
def nano():
    return Tokenizer.load(bundled())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def network():
    return make_model("bigcode")


def ask(prefix, suffix=None, *, heal=True, **sampling):
    params = SamplingParams(**{"max_tokens": 8, "ignore_eos": True} | sampling)
    layout = "auto" if suffix is None else "spm"
    return CompletionRequest(prefix=prefix, suffix=suffix, layout=layout, heal=heal, sampling=params)


def run(engine, *requests):
    done = collect(engine.generate(requests))
    return [done[str(at)][0] for at in range(len(requests))]


def slow_reference(model, tokenizer, request, boundary, num_tokens):
    """Greedy text without a cache, an index or a draft: every step masks the whole vocabulary."""
    tokens, rest = list(boundary.tokens), boundary.text
    special = set(tokenizer.special_tokens.values())
    spelled = [
        b"" if token in special else tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)
    ]
    new, found = b"", []
    while len(found) < num_tokens:
        logits = whole_logits(model, tokens)[-1].clone()
        if rest:
            for token in range(len(logits)):
                text = spelled[token] if token < len(spelled) else b""
                if not text or not (text.startswith(rest) or rest.startswith(text)):
                    logits[token] = float("-inf")
        token = int(logits.argmax())
        tokens.append(token)
        text = tokenizer.token_bytes(token)
        surplus, rest = text[len(rest) :], rest[len(text) :]
        if surplus or not text:
            found.append(token)
            new += surplus
    return new.decode("utf-8", "replace"), tuple(found)


@pytest.mark.parametrize("suffix", [None, "\n    return total\n"])
def test_greedy_text_equals_a_slow_reference(network, tokenizer, path, suffix):
    engine = Engine(network, tokenizer)
    requests = [ask(prompt, suffix) for prompt in PROMPTS]
    num_healed = 0
    for request, got in zip(requests, run(engine, *requests), strict=True):
        prompt = build(request, tokenizer, budget=500)
        boundary = find_boundary(prompt.tokens, prompt.num_open, tokenizer)
        if boundary is not None:
            num_healed += 1
            expected = slow_reference(network, tokenizer, request, boundary, 8)
            assert (got.text, got.tokens) == expected, request.prefix
    assert num_healed > len(PROMPTS) // 2
    assert engine.stats().num_held_blocks == 0


pieces = st.text("ab'lrest ve\n\t\r()._12é☕", max_size=30) | st.sampled_from(
    [CODE, "x = 'we'll don't\n\n\n        self.__init__(12345)\r\n"]
)


@pytest.mark.parametrize("which", ["nano", "tiny"])
@settings(max_examples=300, deadline=None)
@given(text=pieces, at=st.integers(0, 200))
def test_the_constraint_accepts_the_texts_own_tokens(tokenizer, which, text, at):
    """For every split of a text into prompt and rest."""
    own = nano() if which == "nano" else tokenizer
    start = own.sentinels.eos  # as a sentinel before the prefix: one token is always kept
    prompt = own.encode(text[: at % (len(text) + 1)])
    whole = [start, *own.encode(text)]
    boundary = find_boundary([start, *prompt], len(prompt), own)
    if boundary is None:
        assert whole[: 1 + len(prompt)] == [start, *prompt]
        return
    assert tuple(whole[: len(boundary.tokens)]) == boundary.tokens
    healing = Healing(boundary.text, own)
    for token in whole[len(boundary.tokens) :]:
        if healing.is_done:
            break
        assert token in healing.allowed().tolist()
        healing.accept(token)
    assert healing.is_done or len(text) == at % (len(text) + 1)


@given(
    st.dictionaries(st.integers(0, 99), st.binary(max_size=4)),
    st.binary(min_size=1, max_size=5),
)
def test_the_index_finds_what_a_scan_finds(bytes_of, text):
    found = TokenIndex(bytes_of).spelling(text)
    expected = [id for id, own in bytes_of.items() if own and (own.startswith(text) or text.startswith(own))]
    assert sorted(found) == sorted(expected)


def test_no_special_token_heals():
    special = set(nano().special_tokens.values())
    for text in (b"<", b"<|", b"<fim_", b" "):
        assert special.isdisjoint(Healing(text, nano()).allowed().tolist())


def test_what_is_streamed_continues_the_prompt_and_nothing_else(network, tokenizer):
    for prompt in PROMPTS:
        engine = Engine(network, tokenizer)
        chunks = list(engine.generate([ask(prompt, logprobs=2)]))
        [[done]] = collect(chunks).values()
        tokens = next(iter(chunks)).tokens
        assert len(done.tokens) == 8 and len(tokens) == 1
        assert "".join(one.text for one in done.logprobs if "\ufffd" not in one.text) in done.text or (
            "\ufffd" in done.text
        )
        assert [one.token for one in done.logprobs] == list(done.tokens)
        assert done.usage.prompt_tokens == len(tokenizer.encode(prompt))


def test_a_seeded_sample_is_the_same_alone_and_in_a_crowd(network, tokenizer):
    requests = [ask(prompt, temperature=1.0, seed=5, n=2, top_p=0.9) for prompt in PROMPTS]
    crowd = collect(Engine(network, tokenizer).generate(requests))
    for at, request in enumerate(requests):
        alone = collect(Engine(network, tokenizer).generate([request]))["0"]
        assert [one.tokens for one in crowd[str(at)]] == [one.tokens for one in alone]
        assert [one.text for one in crowd[str(at)]] == [one.text for one in alone]


def test_scarce_blocks_and_forks_change_no_answer(network, tokenizer):
    requests = [ask(prompt, n=3, max_tokens=12) for prompt in PROMPTS]
    wide = collect(Engine(network, tokenizer).generate(requests))
    size = bytes_per_token(network.config, torch.float32)
    narrow = EngineSettings(block_size=4, cache_bytes=40 * 4 * size, max_sequences=7, max_step_tokens=24)
    engine = Engine(network, tokenizer, settings=narrow)
    scarce = collect(engine.generate(requests))
    engine._pool.check()
    assert engine.stats().num_held_blocks == 0 and engine.stats().num_preemptions > 0
    for at in wide:
        assert len({one.text for one in wide[at]}) == 1  # greedy samples are equal
        assert [one.tokens for one in scarce[at]] == [one.tokens for one in wide[at]]


def test_stop_strings_see_the_completion_alone(network, tokenizer):
    [free] = run(Engine(network, tokenizer), ask("def total(it"))
    stop = free.text[2:4]
    [got] = run(Engine(network, tokenizer), ask("def total(it", stop=(stop,)))
    assert (got.text, got.finish_reason) == (free.text[: free.text.index(stop)], "stop")
    [same] = run(Engine(network, tokenizer), ask("def total(it", stop=("total(it",)))
    assert same.text == free.text  # the prompt's own text stops nothing


def test_penalties_count_the_completion_alone(network, tokenizer):
    for penalty in ({"frequency_penalty": 1.0}, {"repetition_penalty": 1.5}):
        [got] = run(Engine(network, tokenizer), ask("def total(items", **penalty))
        assert len(got.tokens) == 8


def test_a_grammar_holds_from_the_cursor_on(network, tokenizer):
    pytest.importorskip("llguidance", reason="the extra `structured` is not installed")
    for prompt in PROMPTS:
        grammar = Grammar("regex", "[a-z]{3,9}[0-9]{2}")
        for sampling in ({}, {"temperature": 1.0, "seed": 1}):
            request = ask(prompt, grammar=grammar, max_tokens=40, ignore_eos=False, **sampling)
            [got] = run(Engine(network, tokenizer), request)
            assert re.fullmatch("[a-z]{3,9}[0-9]{2}", got.text), (prompt, got.text)


def test_a_stable_boundary_costs_and_changes_nothing(network):
    from tests.engine.small import Letters, make_engine
    from tests.engine.small import make_model as make_small_model

    model = make_small_model()
    results = []
    for heal in (True, False):
        engine = make_engine(model)
        [got] = run(engine, ask("abc", heal=heal))
        results.append((got.tokens, got.text, engine.stats().computed_tokens, engine.stats().num_steps))
    assert results[0] == results[1]
    assert find_boundary(Letters().encode("abc"), 3, Letters()) is None


def test_keeping_the_prompts_own_tokens_costs_no_step(network, tokenizer):
    """They are the draft of the first step: as many steps as tokens where the model agrees with them."""
    for prompt in PROMPTS:
        engine = Engine(network, tokenizer)
        [got] = run(engine, ask(prompt))
        stats = engine.stats()
        if stats.accepted_tokens == stats.drafted_tokens:
            assert stats.num_steps == len(got.tokens)


@pytest.mark.parametrize("max_tokens", [1, 2, 400])
def test_the_context_is_never_exceeded(network, tokenizer, max_tokens):
    engine = Engine(network, tokenizer)
    for length in range(1, 5000, 311):
        request = ask((CODE * 60)[:length], max_tokens=max_tokens)
        [got] = run(engine, request)
        assert len(got.tokens) == max_tokens
    assert engine.context_length == 512


@pytest.mark.parametrize("prompt", ["x", "\n", "é", "\r\n", "a\r\nb\r\n    ", "☕"])
def test_short_prompts_and_line_ends(network, tokenizer, prompt):
    [got] = run(Engine(network, tokenizer), ask(prompt))
    assert len(got.tokens) == 8
    if "\r\n" in prompt:
        assert "\n" not in got.text.replace("\r\n", "")


def test_token_prompts_are_used_as_they_are(network, tokenizer):
    tokens = tuple(tokenizer.encode("def total(it"))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    [given] = run(Engine(network, tokenizer), CompletionRequest(tokens=tokens, sampling=params))
    [plain] = run(Engine(network, tokenizer), ask("def total(it", heal=False))
    assert given.tokens == plain.tokens


def test_the_bundled_model_finishes_a_word_and_indents_a_block():
    import starcoder

    model = starcoder.load()
    text = "class A:\n    def __init__(self, items):\n        self.items = items\n\n"
    text += "    def size(self):\n        return len(self.it"
    assert model.complete(text, max_tokens=4).text.startswith("ems)")
    assert not model.complete(text, max_tokens=4, heal=False).text.startswith("ems)")


def test_a_keystroke_computes_few_tokens():
    """What was computed of the prompt's own tokens is found again, also where healing left them."""
    import starcoder

    model = starcoder.load()
    head = Path(__file__).read_text("utf-8")[:2500]
    typed = "    tables = [open(name, encoding='utf-8') for name in sorted(names) if name.startswith(p)]\n"
    computed = []
    for at in range(1, len(typed)):
        request = CompletionRequest(prefix=head + typed[:at], session="editor", sampling=SamplingParams(n=2))
        usage = run(model.engine, request)[0].usage
        computed.append(usage.prompt_tokens - usage.cached_tokens)
    assert sum(num <= 4 for num in computed[1:]) >= 0.95 * len(computed[1:]) and max(computed[1:]) <= 6
