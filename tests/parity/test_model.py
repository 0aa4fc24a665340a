"""`Transformer` computes what transformers computes, for every variant of both families."""

import pytest
import torch

from starcoder import checkpoint
from starcoder.model import causal, documents
from tests.tiny import VARIANTS, load_oracle, make_checkpoint

torch.set_num_threads(1)

# Longer than every window in VARIANTS, so that windows forget.
LENGTH = 40


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {name: make_checkpoint(name, tmp_path_factory.mktemp(name)) for name in VARIANTS}


def random_tokens(*shape, vocab_size=320):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def our_logits(model, tokens, attend=None):
    positions = torch.arange(tokens.size(1)).expand_as(tokens)
    return model.head(model(tokens, positions, attend or causal(model.config.sliding_window)))


@torch.inference_mode()
def their_logits(folder, tokens):
    return load_oracle(folder)(tokens).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(checkpoints, variant):
    tokens = random_tokens(2, LENGTH)

    ours = our_logits(checkpoint.load(checkpoints[variant]), tokens)

    theirs = their_logits(checkpoints[variant], tokens)
    assert theirs.abs().mean() > 0.5, "an oracle of near-zero logits would pass anything"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
