"""Packing loses nothing and has the layout that is documented, because files have it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.kernels.packed import GROUP_SIZES, Packed, dequantize, pack, packed_shapes, scales_of, unpack


@settings(max_examples=40, deadline=None)
@given(
    scheme=st.sampled_from(["int4", "int8"]),
    columns=st.integers(1, 50),
    inputs=st.integers(1, 300),
    group_size=st.sampled_from(GROUP_SIZES),
)
def test_unpack_is_the_inverse_of_pack(scheme, columns, inputs, group_size):
    generator = torch.Generator().manual_seed(columns * 1000 + inputs)
    low, high = (-8, 8) if scheme == "int4" else (-127, 128)
    integers = torch.randint(low, high, (columns, inputs), generator=generator, dtype=torch.int8)
    groups = -(-inputs // group_size)
    multiples = torch.randint(-127, 128, (columns, groups), generator=generator, dtype=torch.int8)
    units = torch.rand(columns, generator=generator).bfloat16()
    packed = pack(integers, multiples, units, scheme, group_size)
    again = unpack(packed)
    assert all(map(torch.equal, again, (integers, multiples, units)))
    data, scale_shape = packed_shapes(scheme, columns, inputs, group_size)
    assert (packed.data.shape, packed.scales.shape) == (data, scale_shape)


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_the_layout_is_the_documented_one(scheme):
    integers = torch.randint(-8, 8, (32, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    generator = torch.Generator().manual_seed(1)
    multiples = torch.randint(-127, 128, (32, 2), generator=generator, dtype=torch.int8)
    units = torch.rand(32, generator=generator).bfloat16()
    packed = pack(integers, multiples, units, scheme, 32)
    for column, k in ((0, 0), (5, 7), (16, 12), (31, 63)):
        block, byte = column // 16, 4 * (column % 16) + k % 4
        if scheme == "int8":
            found = packed.data[block, k // 4, byte].view(torch.int8).item()
        else:
            whole = packed.data[block, k // 8, byte].item()
            found = (whole >> 4 if k % 8 >= 4 else whole & 15) - 8
        assert found == integers[column, k]
        assert packed.scales[block, 2 + k // 32, column % 16].view(torch.int8) == multiples[column, k // 32]
        unit = packed.scales[block, :2].flatten().view(torch.bfloat16)[column % 16]
        assert unit == units[column]
        assert (
            scales_of(packed.scales)[block, k // 32, column % 16] == unit * multiples[column, k // 32].float()
        )


def test_bits_per_weight_are_four_a_scale_and_a_unit():
    integers, ones = torch.zeros(64, 256, dtype=torch.int8), torch.ones(64, 8, dtype=torch.int8)
    packed = pack(integers, ones, ones[:, 0].bfloat16(), "int4", 32)
    assert packed.size_bytes * 8 == 64 * (256 * 4.25 + 16)


def test_dequantized_is_integer_times_scale():
    integers, multiples = torch.tensor([[3, -8]], dtype=torch.int8), torch.tensor([[-2]], dtype=torch.int8)
    packed: Packed = pack(integers, multiples, torch.tensor([0.25]).bfloat16(), "int4", 32)
    assert dequantize(packed).tolist() == [[-1.5, 4.0]]
