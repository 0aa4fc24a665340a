"""Quantization is as exact as its bits allow, changes only what it says, and reports what it did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from starcoder.config import ModelConfig
from starcoder.errors import ConfigError
from starcoder.kernels.packed import Packed, Scheme, dequantize, unpack
from starcoder.model import Transformer, causal
from starcoder.quantize import (
    Method,
    QuantizedEmbedding,
    QuantizedLinear,
    expect,
    quantize,
    quantize_matrix,
)

CONFIG = ModelConfig(
    family="gpt_bigcode",
    vocab_size=300,
    hidden_size=128,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=1,
    max_positions=64,
)


def random_model(**changes: object) -> Transformer:
    model = Transformer(
        ModelConfig(**{**{n: getattr(CONFIG, n) for n in CONFIG.__slots__}, **changes})
    ).eval()
    model.initialize(torch.Generator().manual_seed(0), std=0.1)
    return model


def gauss(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.02


def error_of(weight: torch.Tensor, packed: Packed) -> float:
    return float((dequantize(packed) - weight).norm() / weight.norm())


def test_errors_on_normal_weights_are_the_known_ones():
    """A uniform grid of 16 levels cannot do better than 0.107 with one scale; groups and a search do."""
    weight = gauss(256, 1024)
    assert error_of(weight, quantize_matrix(weight, "int4", method="nearest")) == pytest.approx(
        0.086, rel=0.02
    )
    assert error_of(weight, quantize_matrix(weight, "int4")) == pytest.approx(0.082, rel=0.02)
    assert error_of(weight, quantize_matrix(weight, "int8")) == pytest.approx(0.0078, rel=0.02)


def test_int4_is_more_exact_than_q4_0_in_fewer_bits():
    """llama.cpp's Q4_0: groups of 32, the largest weight is -8, a float16 scale: 4.5 bits."""
    weight = gauss(256, 1024)
    groups = weight.view(-1, 32)
    scale = (groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -8).half().float()
    theirs = (groups / scale).round().clamp(-8, 7) * scale
    their_error = float((theirs - groups).norm() / groups.norm())
    packed = quantize_matrix(weight, "int4")
    assert packed.size_bytes * 8 / weight.numel() == 4.25 + 16 / 1024
    assert error_of(weight, packed) < 0.96 * their_error


@settings(max_examples=30, deadline=None)
@given(
    scheme=st.sampled_from(["int4", "int8"]),
    columns=st.integers(1, 40),
    inputs=st.integers(1, 300),
    size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e20]),
)
def test_any_matrix_is_within_half_a_step_of_its_scale(scheme, columns, inputs, size):
    weight = gauss(columns, inputs) * size
    packed = quantize_matrix(weight, scheme, method="nearest")
    _, multiples, units = unpack(packed)
    step = (multiples * units.float()[:, None]).abs().repeat_interleave(packed.group_size, 1)[:, :inputs]
    # The largest int4 weight may be a whole step off where it sits at +8, and half a unit per step more.
    is_int4 = scheme == "int4"
    allowed = step * (1.05 if is_int4 else 0.502) + is_int4 * 4 * units.float()[:, None] + 1e-37
    assert bool(((dequantize(packed) - weight).abs() <= allowed).all())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.1, 1.0, 3.0]))
def test_neighbours_in_int8_stay_within_what_16_bits_hold(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 256, generator=generator).sinh() * spread  # heavy tails
    weight[0] = 1.0  # all equal: the largest pairs there can be
    integers, _, _ = unpack(quantize_matrix(weight, "int8"))
    pairs = integers.int().view(32, -1, 2)
    same_sign = pairs.prod(-1) > 0
    assert int(pairs.sum(-1).abs()[same_sign].max()) <= 128
    assert int(integers.abs().max()) <= 127


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_a_quantized_network_is_close_and_its_report_adds_up(scheme: Scheme):
    model, reference = random_model(), random_model()
    report = quantize(model, scheme)
    tokens, positions = torch.arange(40)[None], torch.arange(40)[None]
    with torch.inference_mode():
        found = model.head(model(tokens, positions, causal()))
        expected = reference.head(reference(tokens, positions, causal()))
    error = float((found - expected).norm() / expected.norm())
    # Errors of ten layers add up: 0.29 and 0.035 with these seeds.
    assert error < (0.35 if scheme == "int4" else 0.045)
    stored = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    floats = sum(parameter.nbytes for parameter in model.parameters())
    assert report.size_bytes == sum(stored.values()) + floats
    assert report.num_parameters == CONFIG.num_parameters
    assert [layer.name for layer in report.layers[:3]] == ["embed", "positions", "blocks.0.attention.qkv"]
    assert all(0 < layer.error < (0.11 if scheme == "int4" else 0.01) for layer in report.layers)


def test_tied_tables_stay_one_and_positions_keep_8_bits():
    model = random_model()
    report = quantize(model, "int4")
    assert isinstance(model.head, QuantizedLinear) and isinstance(model.embed, QuantizedEmbedding)
    assert model.head.data.data_ptr() == model.embed.data.data_ptr()
    assert isinstance(model.positions, QuantizedEmbedding) and model.positions.packed.scheme == "int8"
    assert sum(layer.name in ("embed", "head") for layer in report.layers) == 1


def test_an_embedding_looks_up_what_its_table_says():
    model = random_model()
    quantize(model, "int4")
    for table in (model.embed, model.positions):
        assert isinstance(table, QuantizedEmbedding)
        which = torch.tensor([[0, 17], [63, 5]])
        assert torch.equal(table(which), table.dequantized()[which])


@pytest.mark.parametrize("method", ["nearest", "search"])
def test_bfloat16_models_are_quantized_as_their_floats(method: Method):
    model, floats = random_model().bfloat16(), random_model().bfloat16().float()
    quantize(model, "int4", method=method)
    quantize(floats, "int4", method=method)
    for (name, mine), (_, theirs) in zip(
        model.state_dict().items(), floats.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_a_state_loads_into_an_expectant_network():
    model = random_model()
    quantize(model, "int4")
    with torch.device("meta"):
        empty = Transformer(CONFIG)
    expect(empty, "int4")
    empty.load_state_dict(model.state_dict(), assign=True)
    with torch.inference_mode():
        both = [
            net.head(net(torch.arange(9)[None], torch.arange(9)[None], causal())) for net in (model, empty)
        ]
    assert torch.equal(*both)


def test_quantizing_twice_is_an_error():
    model = random_model()
    quantize(model, "int8")
    with pytest.raises(ConfigError, match="already"):
        quantize(model, "int4")


def test_it_knows_no_particular_model():
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 7, bias=False))
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(2))
    expected = net(x).detach()
    report = quantize(net, "int8")
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert float((net(x) - expected).norm() / expected.norm()) < 0.02
