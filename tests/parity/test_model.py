"""`Transformer` computes what transformers computes, for every variant of both families, there and back."""

import pytest
import torch

from starcoder import checkpoint
from starcoder.model import causal
from tests.tiny import VARIANTS, load_oracle, make_checkpoint

torch.set_num_threads(1)

# Longer than every window in VARIANTS, so that windows forget.
LENGTH = 40


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {name: make_checkpoint(name, tmp_path_factory.mktemp(name)) for name in VARIANTS}


def random_tokens():
    return torch.randint(320, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def our_logits(model, tokens):
    positions = torch.arange(tokens.size(1)).expand_as(tokens)
    return model.head(model(tokens, positions, causal(model.config.sliding_window)))


@torch.inference_mode()
def their_logits(folder, tokens):
    return load_oracle(folder)(tokens).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(checkpoints, variant):
    tokens = random_tokens()

    ours = our_logits(checkpoint.load(checkpoints[variant]), tokens)

    theirs = their_logits(checkpoints[variant], tokens)
    assert theirs.abs().mean() > 0.5, "an oracle of near-zero logits would pass anything"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_what_save_writes(checkpoints, variant, max_shard_bytes, tmp_path):
    tokens = random_tokens()

    checkpoint.save(checkpoint.load(checkpoints[variant]), tmp_path, max_shard_bytes=max_shard_bytes)

    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes == 100_000)
    assert torch.equal(their_logits(tmp_path, tokens), their_logits(checkpoints[variant], tokens))


@pytest.mark.parametrize("variant", ["bigcode-multi-head", "starcoder2"])
def test_shards_that_transformers_writes_load(variant, tmp_path):
    make_checkpoint(variant, tmp_path / "whole")
    make_checkpoint(variant, tmp_path / "sharded", shards=3)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) >= 3

    whole, sharded = (checkpoint.load(tmp_path / name).state_dict() for name in ("whole", "sharded"))

    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["bigcode", "starcoder2"])
def test_half_precision_stays_close_to_float32(variant, dtype, tmp_path):
    name = str(dtype).removeprefix("torch.")
    folder = make_checkpoint(variant, tmp_path, dtype=name)
    tokens = random_tokens()

    half = checkpoint.load(folder)

    assert half.embed.weight.dtype == half.blocks[0].attention.qkv.weight.dtype == dtype
    ours, theirs = our_logits(half, tokens).float(), their_logits(folder, tokens)
    # Twice the error measured for bfloat16, whose 8 bits of mantissa round after every operation.
    assert (ours - theirs).norm() / theirs.norm() < 0.012


@pytest.mark.parametrize("variant", ["bigcode-multi-head", "starcoder2"])
def test_bfloat16_weights_can_run_in_float32(variant, tmp_path):
    folder = make_checkpoint(variant, tmp_path, dtype="bfloat16")
    tokens = random_tokens()

    ours = our_logits(checkpoint.load(folder, dtype=torch.float32), tokens)

    torch.testing.assert_close(ours, their_logits(folder, tokens), atol=1e-5, rtol=1e-5)
