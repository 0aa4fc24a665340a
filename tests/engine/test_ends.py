"""A generation ends where the model or its caller says; wrong types are refused; NaN is an error."""

import json

import pytest
import torch

from starcoder.engine.sampling import Draw, sample
from starcoder.errors import CheckpointError, RequestError
from starcoder.request import CompletionRequest, SamplingParams, collect
from starcoder.tokenizer import Tokenizer
from tests.engine.small import VOCAB, Letters, ask, greedy, make_engine, make_model
from tests.tiny import make_tokenizer

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -2, "at least 1"),
        ("n", "2", "whole number"),
        ("top_k", 1.0, "whole number"),
        ("temperature", float("nan"), "finite number"),
        ("temperature", float("inf"), "finite number"),
        ("temperature", "0.5", "finite number"),
        ("min_p", 1.5, "between 0 and 1"),
        ("seed", 1.5, "whole number"),
        ("stop", "x", "tuple of texts"),
        ("stop", (1,), "tuple of texts"),
        ("stop_ids", ("1",), "tuple of whole numbers"),
        ("logit_bias", ((1, "x"),), "pairs"),
        ("logit_bias", ((1, 101.0),), "between -100 and 100"),
        ("min_tokens", 65, "max_tokens"),
        ("ignore_eos", 1, "True or False"),
        ("deadline_ms", "9", "finite number"),
    ],
)
def test_values_of_a_wrong_type_are_refused(field, value, expected):
    with pytest.raises(RequestError, match=f"{field} is .*{expected}"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    "fields", [{"layout": "pms"}, {"prefix": b"x"}, {"suffix": 1}, {"priority": 0.5}, {"heal": "no"}]
)
def test_requests_of_a_wrong_type_are_refused(fields):
    with pytest.raises(RequestError, match=f"{next(iter(fields))} is"):
        CompletionRequest(**{"prefix": "x"} | fields)


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (7, None, {7}),
        ([0, 9], None, {0, 9}),
        (0, [3, 4], {0, 3, 4}),
        (None, 5, {5}),
        ("absent", "absent", set()),
    ],
)
def test_a_checkpoints_own_ends_count(tmp_path, config, generation, ends):
    family = make_tokenizer("starcoder", tmp_path).sentinels.end_ids
    for name, value in (("config.json", config), ("generation_config.json", generation)):
        document = {} if value == "absent" else {"eos_token_id": value}
        (tmp_path / name).write_text(json.dumps(document))
    sentinels = Tokenizer.load(tmp_path).sentinels
    assert sentinels.end_ids == family | ends and set(sentinels.own_ends) == ends


@pytest.mark.parametrize("value", ["0", 1.5, True, -1, [0, "1"], {"id": 0}])
def test_ends_that_are_no_ids_are_refused(tmp_path, value):
    make_tokenizer("starcoder", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(CheckpointError, match="eos_token_id"):
        Tokenizer.load(tmp_path)


@pytest.fixture
def own_end(monkeypatch):
    """Token 42 also ends the text."""
    changed = Letters.sentinels.__class__(style="starcoder", eos=0, end_ids=frozenset({0, 42}))
    monkeypatch.setattr(Letters, "sentinels", changed)


def find_with(model, token):
    """A prompt after which the model soon writes `token`, and how soon."""
    for first in range(1, VOCAB):
        written = greedy(model, [first, 9], 12)
        if token in written[2:]:
            return [first, 9], written.index(token)
    raise AssertionError("no prompt does")


def test_an_end_token_ends_the_text_and_is_not_printed(model, own_end):
    prompt, at = find_with(model, 42)
    [[got]] = collect(make_engine(model).generate([ask(prompt, ignore_eos=False)])).values()
    assert (len(got.tokens), got.finish_reason) == (at, "eos")
    assert Letters.text(42) not in got.text


def test_min_tokens_keeps_ends_away(model, own_end):
    prompt, at = find_with(model, 42)
    request = ask(prompt, ignore_eos=False, min_tokens=at + 2)
    [[got]] = collect(make_engine(model).generate([request])).values()
    assert len(got.tokens) >= at + 2 and 42 not in got.tokens[: at + 2]


def test_until_the_end_fills_the_context(model):
    engine = make_engine(model)
    [[got]] = collect(engine.generate([ask([1, 2, 3], max_tokens=-1)])).values()
    assert (len(got.tokens), got.finish_reason) == (engine.context_length - 3, "length")


def test_a_stop_string_can_be_included(model):
    [[free]] = collect(make_engine(model).generate([ask([1, 2, 3])])).values()
    stop = free.text[4:6]
    request = ask([1, 2, 3], stop=(stop,), include_stop=True)
    [[got]] = collect(make_engine(model).generate([request])).values()
    assert got.text == free.text[: free.text.index(stop) + 2] and got.stop == stop


def test_a_bias_raises_and_bars_tokens(model):
    [[free]] = collect(make_engine(model).generate([ask([1, 2, 3])])).values()
    barred = ask([1, 2, 3], logit_bias=((free.tokens[0], -100.0),))
    raised = ask([1, 2, 3], logit_bias=((7, 100.0),))
    done = collect(make_engine(model).generate([barred, raised]))
    assert free.tokens[0] not in done["0"][0].tokens and set(done["1"][0].tokens) == {7}
    with pytest.raises(RequestError, match="token 97"):
        make_engine(model).add(ask([1], logit_bias=((VOCAB, 1.0),)))


def test_min_p_drops_what_is_less_probable():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.12, 0.08]]))
    drawn = set()
    for seed in range(200):
        params = SamplingParams(temperature=1.0, min_p=0.25)
        drawn.add(sample(logits, [Draw(params, seed)], [[0]])[0].token)
    assert drawn == {0, 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}, {"logprobs": 1}, {"drafts": 4}])
def test_weights_that_are_not_finite_are_an_error_of_the_request(value, sampling, path):
    model = make_model(seed=3)
    model.norm.weight.data[5] = value
    engine = make_engine(model, drafts=sampling.pop("drafts", 0))
    request_id = engine.add(ask([1, 2, 3], n=2, **sampling))
    chunks = []
    while not engine.is_idle:
        chunks += engine.step()
    assert {(chunk.request_id, chunk.finish_reason) for chunk in chunks} == {(request_id, "error")}
    assert all("not finite" in chunk.error and not chunk.tokens for chunk in chunks)
    assert engine.stats().num_held_blocks == 0
    with pytest.raises(CheckpointError, match="not finite"):
        list(engine.generate([ask([1, 2])]))
