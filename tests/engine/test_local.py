"""`load` gives a model that completes and streams in this process, with every option of a request."""

import pytest
import torch

from starcoder.engine import local
from starcoder.errors import ConfigError, RequestError
from starcoder.request import CompletionRequest, SamplingParams, collect
from tests.tiny import make_checkpoint, make_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_checkpoint("bigcode", tmp_path_factory.mktemp("model"), dtype="bfloat16")
    make_tokenizer("starcoder", folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return local.load(folder)


def test_streamed_pieces_are_the_completion(model):
    # Unhealed: a healed completion's first token may begin in the prompt, see test_healing.py.
    whole = model.complete("def add(a, b):\n", max_tokens=20, ignore_eos=True, heal=False)
    pieces = list(model.stream("def add(a, b):\n", max_tokens=20, ignore_eos=True, heal=False))
    assert "".join(piece.text for piece in pieces) == whole.text == model.tokenizer.decode(whole.tokens)
    assert len(whole.tokens) == 20 and pieces[-1].finish_reason == "length"


def test_a_suffix_makes_it_an_infill(model):
    prompt_tokens = model.complete("a = ", "\nb = 2\n", layout="spm").usage.prompt_tokens
    sides = model.tokenizer.encode("a = ") + model.tokenizer.encode("\nb = 2\n")
    assert prompt_tokens == len(sides) + 3


def test_options_reach_request_and_sampling(model):
    done = model.complete("x", max_tokens=3, temperature=1.0, seed=1, logprobs=2, ignore_eos=True)
    again = model.complete("x", max_tokens=3, temperature=1.0, seed=1, logprobs=2, ignore_eos=True)
    assert done.tokens == again.tokens and len(done.logprobs[0].top) == 2
    with pytest.raises(RequestError, match="temperature"):
        model.complete("x", temperature=-1)


def test_it_generates_several_requests(model):
    params = SamplingParams(max_tokens=2, n=2, temperature=1.0)
    done = collect(model.generate([CompletionRequest(prefix=text, sampling=params) for text in "abc"]))
    assert {key: len(samples) for key, samples in done.items()} == {"0": 2, "1": 2, "2": 2}


def test_weights_are_float32_on_a_cpu_unless_told_otherwise(folder):
    assert weights(local.load(folder)) is torch.float32
    assert weights(local.load(folder, dtype="bfloat16")) is torch.bfloat16
    assert local.load(folder, dtype="bfloat16").complete("x", max_tokens=4, ignore_eos=True).tokens
    with pytest.raises(ConfigError, match="'int3'"):
        local.load(folder, dtype="int3")


def weights(model):
    return model.engine._runner._cache.pools[0].dtype


def test_threads_are_set(folder):
    local.load(folder, threads=1)
    assert torch.get_num_threads() == 1
