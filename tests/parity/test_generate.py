"""The engine's greedy tokens are those of `transformers.generate`, for every variant, batched and chunked."""

import random

import pytest
import torch

from starcoder import checkpoint
from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.request import CompletionRequest, SamplingParams, collect
from tests.tiny import VARIANTS, load_oracle, make_checkpoint, make_tokenizer

torch.set_num_threads(1)

LENGTH = 64
VOCAB = 320


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def prompts():
    rng = random.Random(0)
    return [tuple(rng.randrange(VOCAB) for _ in range(length)) for length in (1, 2, 7, 16, 33, 64, 65, 150)]


def oracle_tokens(model, prompt):
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_equal_transformers(variant, tokenizer, tmp_path):
    folder = make_checkpoint(variant, tmp_path)
    oracle = load_oracle(folder)
    settings = EngineSettings(max_step_tokens=48, max_sequences=8)
    engine = Engine(checkpoint.load(folder), tokenizer, settings=settings)
    sampling = SamplingParams(max_tokens=LENGTH, ignore_eos=True)
    done = collect(engine.generate([CompletionRequest(tokens=it, sampling=sampling) for it in prompts()]))
    for position, prompt in enumerate(prompts()):
        assert done[str(position)][0].tokens == oracle_tokens(oracle, prompt)
