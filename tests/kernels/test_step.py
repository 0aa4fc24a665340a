"""A native step equals `Transformer.forward` for every kind of network, however the tokens are cut up."""

from array import array
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from starcoder.config import ModelConfig, RotaryScaling
from starcoder.engine.native import Network
from starcoder.kernels import native
from starcoder.kernels.step import NativeSegment, NativeStep
from starcoder.model import Transformer, causal
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, quantize

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")

SHARED = {"vocab_size": 131, "num_layers": 2, "max_positions": 400}
MULTI_QUERY = ModelConfig(
    family="gpt_bigcode", hidden_size=64, intermediate_size=200, num_heads=4, num_kv_heads=1, **SHARED
)
GROUPED = ModelConfig(
    family="starcoder2",
    hidden_size=128,
    intermediate_size=256,
    num_heads=8,
    num_kv_heads=2,
    rope_theta=1e4,
    **SHARED,
)
LLAMA = replace(
    GROUPED,
    family="llama",
    intermediate_size=100,
    has_qkv_bias=False,
    has_out_bias=False,
    has_mlp_bias=False,
    has_rms_norm=True,
    is_gated=True,
    activation="silu",
)
YARN = RotaryScaling(kind="yarn", factor=4.0, original_positions=64, low=1.0, high=32.0, attention_factor=1.1)
CONFIGS = {
    "multi-query": MULTI_QUERY,
    "one head each": replace(MULTI_QUERY, num_kv_heads=4),
    "exact gelu, untied": replace(MULTI_QUERY, activation="gelu", tied_embeddings=False),
    "grouped, rotary": GROUPED,
    "window": replace(GROUPED, sliding_window=7),
    "window beyond a split": replace(GROUPED, sliding_window=150),
    "no bias": replace(GROUPED, has_qkv_bias=False, has_out_bias=False, has_mlp_bias=False),
    "llama": LLAMA,
    "wide heads, norms of queries and keys": replace(LLAMA, family="qwen3", head_dim=24, has_qk_norm=True),
    "yarn, biases": replace(LLAMA, rope_scaling=YARN, has_qkv_bias=True, has_mlp_bias=True),
    "gated gelu, odd sizes": replace(LLAMA, activation="gelu_tanh", intermediate_size=51, sliding_window=7),
    "silu without gate": replace(LLAMA, is_gated=False),
    "odd sizes": replace(MULTI_QUERY, hidden_size=60, intermediate_size=50, num_heads=5),
}
BLOCK = 16


def random_model(config: ModelConfig) -> Transformer:
    model, generator = Transformer(config).eval(), torch.Generator().manual_seed(0)
    model.initialize(generator, std=0.15)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def native_step(model: Transformer, num_blocks: int = 60, variant: str | None = None) -> NativeStep:
    config = model.config
    shape = config.num_layers, num_blocks, BLOCK, config.num_kv_heads, config.head_size
    nan = float("nan")  # what was never written must never be read
    network = Network(model)
    step = NativeStep(network.description, torch.full(shape, nan), torch.full(shape, nan), variant=variant)
    step.network = network  # keeps what the step points to
    return step


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHARED["vocab_size"], (count,), generator=generator).tolist()


@torch.inference_mode()
def torch_logits(model: Transformer, ids: list[int]) -> Tensor:
    attend = causal(model.config.sliding_window)
    return model.head(model(torch.tensor([ids]), torch.arange(len(ids))[None], attend))[0]


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_step_equals_the_transformer(config, variant):
    model, ids = random_model(config), tokens(280, 1)
    found = native_step(model, variant=variant).run([NativeSegment(ids, 0, range(5, 23))], range(280))
    torch.testing.assert_close(found, torch_logits(model, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_chunks_batches_and_threads_change_no_bit(config, scheme):
    """A prompt at once; in chunks, beside another sequence, over scattered blocks; its last token alone.

    In float32 the last token, a row alone, sums in another order: equal within rounding.
    """
    model, a, b = random_model(config), tokens(280, 1), tokens(150, 2)
    if scheme is not None:
        quantize(model, scheme)
    blocks = torch.randperm(60, generator=torch.Generator().manual_seed(3)).tolist()
    of_a, of_b = blocks[:18], blocks[18:28]
    whole = native_step(model).run([NativeSegment(a, 0, range(18))], range(280), threads=1)
    step = native_step(model)
    first = [NativeSegment(a[:130], 0, of_a), NativeSegment(b[:9], 0, of_b)]
    second = [NativeSegment(b[9:], 9, of_b), NativeSegment(a[130:279], 130, of_a)]
    last = [NativeSegment(a[279:], 279, of_a)]
    parts = [
        step.run(first, range(130), threads=2),
        step.run(second, range(141, 290), threads=3),
        step.run(last, [0], threads=2),
    ]
    assert torch.equal(torch.cat(parts[:2]), whole[:279])
    if scheme is None:
        torch.testing.assert_close(parts[2], whole[279:], rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(parts[2], whole[279:])


@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize(
    "config", [MULTI_QUERY, GROUPED, LLAMA], ids=["learned positions", "rotary", "llama"]
)
def test_a_quantized_step_equals_its_modules(config, scheme):
    """The same network through `QuantizedLinear.forward` and torch's attention.

    Within a few steps of the 8-bit activations: the two ways differ in the last float bit before rounding.
    """
    model, ids = random_model(config), tokens(90, 4)
    quantize(model, scheme)
    assert isinstance(model.head, QuantizedLinear) and isinstance(model.embed, QuantizedEmbedding)
    found = native_step(model).run([NativeSegment(ids, 0, range(6))], range(90))
    expected = torch_logits(model, ids)
    assert float((found - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_quantized_decode_equals_quantized_prefill(scheme):
    model, ids = random_model(MULTI_QUERY), tokens(40, 5)
    quantize(model, scheme)
    whole = native_step(model).run([NativeSegment(ids, 0, range(3))], range(40), threads=1)
    step = native_step(model)
    for at, token in enumerate(ids):
        alone = step.run([NativeSegment([token], at, range(3))], [0], threads=2)
        assert torch.equal(alone[0], whole[at])


def test_hidden_states_are_those_of_the_logits():
    model, ids = random_model(GROUPED), tokens(20, 6)
    step = native_step(model)
    hidden = step.hidden([NativeSegment(ids, 0, [7, 3])], [19, 4])
    logits = step.run([NativeSegment(ids, 0, [7, 3])], [19, 4])
    torch.testing.assert_close(model.head(hidden), logits, rtol=1e-5, atol=1e-5)


def test_a_step_that_wants_no_row_only_fills_the_cache():
    model, ids = random_model(GROUPED), tokens(30, 7)
    step = native_step(model)
    assert step.run([NativeSegment(ids[:29], 0, [7, 3])], []).shape == (0, 131)
    found = step.run([NativeSegment(ids[29:], 29, [7, 3])], [0])
    torch.testing.assert_close(found, torch_logits(model, ids)[29:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_the_best_tokens_come_with_the_logits(scheme):
    model, ids = random_model(MULTI_QUERY), tokens(60, 8)
    if scheme is not None:
        quantize(model, scheme)
    step = native_step(model)
    for threads in (1, 2, 3):
        best = array("i", bytes(4 * 60))
        logits = step.run([NativeSegment(ids, 0, range(4))], range(60), threads=threads, best=best)
        assert best.tolist() == logits.argmax(-1).tolist()
        assert len(set(best)) > 1, "the case tells rows apart"


def test_of_equally_good_tokens_the_first_is_best():
    model, ids = random_model(MULTI_QUERY), tokens(3, 9)
    with torch.no_grad():
        model.head.weight[7:] = model.head.weight[7]  # and no token below 7 is better in both rows
        model.head.weight[:7] = -model.head.weight[7]
    best = array("i", bytes(8))
    logits = native_step(model).run([NativeSegment(ids, 0, [0])], [0, 2], threads=2, best=best)
    assert best.tolist() == [0 if row[0] > row[7] else 7 for row in logits]
