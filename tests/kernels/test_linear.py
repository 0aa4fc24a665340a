"""Native products equal float64 within what 8-bit activations imply, on every variant this machine runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from starcoder.kernels import native
from starcoder.kernels.ops import native_linear
from starcoder.kernels.packed import GROUP_SIZES, Packed, Scheme, dequantize, pack

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")
SCHEMES: list[Scheme] = ["int4", "int8"]


def random_packed(scheme: Scheme, columns: int, inputs: int, group_size: int, seed: int = 0) -> Packed:
    """Any integers that the format allows, the extremes among them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (-8, 8) if scheme == "int4" else (-64, 65)
    integers = torch.randint(low, high, (columns, inputs), generator=generator, dtype=torch.int8)
    if scheme == "int8":  # alone in a pair, a weight may be larger
        integers[:, ::4], integers[:, 1::4] = 127, 1
    groups = -(-inputs // group_size)
    multiples = torch.randint(-127, 128, (columns, groups), generator=generator, dtype=torch.int8)
    units = torch.rand(columns, generator=generator) * 2e-4 - 1e-4
    return pack(integers, multiples, units.bfloat16(), scheme, group_size)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as the kernels see them: 128 inputs share a scale, in float64; and where near a tie.

    The second holds one step where float32 may round either way, else zero.
    """
    rows, inputs = x.shape
    groups = torch.nn.functional.pad(x, (0, -inputs % 128)).view(rows, -1, 128).double()
    scale = groups.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale > 0, groups / scale, 0)
    is_near = ((steps.abs() % 1) - 0.5).abs() < 1e-4  # float32 knows 127 to 1.5e-5
    return tuple((it * scale).view(rows, -1)[:, :inputs] for it in (steps.round(), is_near.double()))


def assert_equals_reference(x: Tensor, packed: Packed, bias: Tensor | None, variant: str) -> None:
    """Against float64 over the same rounded activations, but for near ties and sums over groups."""
    weight = dequantize(packed).double()
    activations, ties = rounded(x)
    expected = activations @ weight.T
    if bias is not None:
        expected += bias.double()
    found = native_linear(x, packed, bias, threads=2, variant=variant)
    size = x.double().abs() @ weight.abs().T + (0 if bias is None else bias.abs())
    allowed = 1e-6 * (2 + packed.inputs / 128) * size + 1.01 * ties @ weight.abs().T + 1e-30
    assert bool(((found - expected).abs() <= allowed).all()), float(
        ((found - expected).abs() / allowed).max()
    )


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_row_count_to_64_equals_float64(scheme, variant):
    generator = torch.Generator().manual_seed(1)
    packed = random_packed(scheme, 40, 333, 64)
    for rows in range(1, 65):
        assert_equals_reference(torch.randn(rows, 333, generator=generator), packed, None, variant)


@pytest.mark.parametrize("variant", native.variants())
@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    columns=st.integers(1, 70),
    inputs=st.integers(1, 600),
    group_size=st.sampled_from(GROUP_SIZES),
    rows=st.integers(1, 24),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_float64(variant, scheme, columns, inputs, group_size, rows, has_bias, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    bias = torch.randn(columns, generator=generator) if has_bias else None
    packed = random_packed(scheme, columns, inputs, group_size, seed)
    assert_equals_reference(x, packed, bias, variant)


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_largest_integers_do_not_saturate(scheme, variant):
    """All weights, activations and multiples at their extremes, same signs: the worst case of sums."""
    for weight, activation in (
        ((-8, 1.0), (7, 1.0), (-8, -1.0)) if scheme == "int4" else ((64, 1.0), (-64, 1.0), (-64, -1.0))
    ):
        integers = torch.full((16, 512), weight, dtype=torch.int8)
        multiples, units = torch.full((16, 4), 127, dtype=torch.int8), torch.full((16,), 2.0**-7)
        packed = pack(integers, multiples, units.bfloat16(), scheme, 128)
        found = native_linear(torch.full((9, 512), activation), packed, variant=variant)
        torch.testing.assert_close(found, torch.full((9, 16), 508.0 * weight * activation))


@pytest.mark.parametrize("variant", native.variants())
def test_floats_equal_float64(variant):
    generator = torch.Generator().manual_seed(2)
    for columns, inputs, rows in ((1, 1, 1), (45, 300, 7), (16, 513, 64), (100, 64, 13)):
        weight = torch.randn(columns, inputs, generator=generator)
        x, bias = torch.randn(rows, inputs, generator=generator), torch.randn(columns, generator=generator)
        found = native_linear(x, weight, bias, threads=2, variant=variant)
        expected = (x.double() @ weight.double().T + bias.double()).float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)  # float32 sums of up to 513


def matrices() -> list[Packed | Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [
        *(random_packed(scheme, 90, 520, 64) for scheme in SCHEMES),
        torch.randn(90, 520, generator=generator),
    ]


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("weight", matrices(), ids=["int4", "int8", "float32"])
def test_a_row_alone_equals_the_row_in_a_batch(weight, variant):
    x = torch.randn(40, 520, generator=torch.Generator().manual_seed(4))
    alone = torch.cat([native_linear(x[row : row + 1], weight, variant=variant) for row in range(40)])
    for rows in (2, 3, 7, 8, 9, 40):
        batch = native_linear(x[:rows], weight, variant=variant)
        if isinstance(weight, torch.Tensor):  # one row sums in another order; sums are of size 23
            torch.testing.assert_close(batch, alone[:rows], rtol=1e-5, atol=5e-5)
        else:
            assert torch.equal(batch, alone[:rows])


@pytest.mark.parametrize("weight", matrices(), ids=["int4", "int8", "float32"])
def test_the_number_of_threads_changes_nothing(weight):
    x = torch.randn(40, 520, generator=torch.Generator().manual_seed(5))
    for rows in (1, 5, 40):
        one = native_linear(x[:rows], weight, threads=1)
        for threads in (2, 3, 7):
            assert torch.equal(native_linear(x[:rows], weight, threads=threads), one)


@pytest.mark.parametrize("variant", native.variants())
@pytest.mark.parametrize("scheme", SCHEMES)
def test_memory_may_start_anywhere(scheme, variant):
    """Weights mapped from a file start where the file has them."""
    packed = random_packed(scheme, 33, 256, 64)
    x = torch.randn(9, 256, generator=torch.Generator().manual_seed(6))
    expected = native_linear(x, packed, variant=variant)
    shifted = torch.empty(packed.data.numel() + 1, dtype=torch.uint8)[1:].view(packed.data.shape)
    shifted.copy_(packed.data)
    moved = Packed(packed.scheme, 33, 256, 64, shifted, packed.scales)
    y = torch.empty(9 * 256 + 1)[1:].view(9, 256).copy_(x)
    assert shifted.data_ptr() % 2 == 1
    assert torch.equal(native_linear(y, moved, variant=variant), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_and_tiny_numbers_are_finite(scheme):
    packed = random_packed(scheme, 20, 128, 64)
    x = torch.stack([torch.zeros(128), torch.full((128,), 1e-42), torch.full((128,), 1e30)])
    found = native_linear(x, packed)
    assert bool(found[0].eq(0).all()) and bool(found.isfinite().all())
