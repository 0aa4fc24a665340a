"""Packed int4 and int8 weights: the layout that the kernels read, and the way back to floats.

Layout (also on disk): 16 output columns side by side. `data` is (blocks, lines, 64) bytes; one line
holds 4 inputs (int8) or 8 inputs (int4) of 16 columns: byte `4 column + j` is input `j`; int4 keeps
input `j` in the low and `4 + j` in the high half, plus 8. `scales` is (blocks, 2 + groups, 16) bytes: the
first two rows of 16 are a bfloat16 unit for each column, the others for each group signed multiples of the
units. So a scale costs one byte, and groups may be small. Columns are padded to 16 and inputs to whole
groups, with zeros.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["int8", "int4"]
COLUMNS = 16  # of a block
GROUP_SIZES = (32, 64, 128)  # that the kernels can read


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantized matrix (columns, inputs): outputs by inputs, as `nn.Linear.weight` is."""

    scheme: Scheme
    columns: int
    inputs: int
    group_size: int  # inputs that share a scale
    data: Tensor  # (blocks, lines, 64) uint8
    scales: Tensor  # (blocks, 2 + groups, 16) uint8

    @property
    def size_bytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes


def packed_shapes(
    scheme: Scheme, columns: int, inputs: int, group_size: int
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shapes of `data` and `scales`."""
    blocks, groups = -(-columns // COLUMNS), -(-inputs // group_size)
    lines = groups * group_size // (8 if scheme == "int4" else 4)
    return (blocks, lines, 4 * COLUMNS), (blocks, 2 + groups, COLUMNS)


def pack(integers: Tensor, multiples: Tensor, units: Tensor, scheme: Scheme, group_size: int) -> Packed:
    """Pack `integers` (columns, inputs) int8; a scale is `multiples` (columns, groups) x `units` (columns,).

    int4 holds -8 to 7. int8 holds -127 to 127, and inputs 2 i and 2 i + 1 of one sign add up to at
    most 128 in size (`quantize` sees to it): the AVX2 kernel relies on it.
    """
    columns, inputs = integers.shape
    (blocks, lines, _), (_, rows, _) = packed_shapes(scheme, columns, inputs, group_size)
    groups = rows - 2
    padded = integers.new_zeros(blocks * COLUMNS, groups * group_size)
    padded[:columns, :inputs] = integers
    if scheme == "int4":
        halves = (padded + 8).to(torch.uint8).view(blocks, COLUMNS, lines, 2, 4)
        data = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    else:
        data = padded.view(torch.uint8).view(blocks, COLUMNS, lines, 4)
    data = data.transpose(1, 2).reshape(blocks, lines, 4 * COLUMNS).contiguous()
    scales = torch.zeros(blocks, 2 + groups, COLUMNS, dtype=torch.uint8, device=integers.device)
    padded_units = torch.zeros(blocks * COLUMNS, dtype=torch.bfloat16, device=integers.device)
    padded_units[:columns] = units
    scales[:, :2] = padded_units.view(torch.uint8).view(blocks, 2, COLUMNS)
    padded_multiples = multiples.new_zeros(blocks * COLUMNS, groups)
    padded_multiples[:columns] = multiples
    scales[:, 2:] = padded_multiples.view(torch.uint8).view(blocks, COLUMNS, groups).transpose(1, 2)
    return Packed(scheme, columns, inputs, group_size, data, scales)


def unpack(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `pack`: integers, multiples and units."""
    (blocks, lines, _), (_, rows, _) = packed_shapes(
        packed.scheme, packed.columns, packed.inputs, packed.group_size
    )
    groups, columns = rows - 2, packed.columns
    data = packed.data.view(blocks, lines, COLUMNS, 4).transpose(1, 2)
    if packed.scheme == "int4":
        integers = torch.stack([data & 15, data >> 4], dim=3).view(torch.int8) - 8
    else:
        integers = data.contiguous().view(torch.int8)
    integers = integers.reshape(blocks * COLUMNS, groups * packed.group_size)
    multiples, units = _scales(packed.scales)
    multiples = multiples.transpose(1, 2).reshape(blocks * COLUMNS, groups)
    return integers[:columns, : packed.inputs], multiples[:columns], units.flatten()[:columns]


def _scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Multiples (blocks, groups, 16) int8 and units (blocks, 16) bfloat16."""
    units = scales[:, :2].reshape(-1, 2 * COLUMNS).view(torch.bfloat16)
    return scales[:, 2:].contiguous().view(torch.int8), units


def scales_of(scales: Tensor) -> Tensor:
    """The scales (blocks, groups, 16) float32 that the bytes `scales` of a matrix stand for; exact."""
    multiples, units = _scales(scales)
    return multiples.float() * units.float()[:, None]


def dequantize(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (columns, inputs) that the integers and scales stand for."""
    integers, multiples, units = unpack(packed)
    scales = multiples.float() * units.float()[:, None]
    spread = scales.repeat_interleave(packed.group_size, dim=1)[:, : packed.inputs]
    return (integers.float() * spread).to(dtype)
