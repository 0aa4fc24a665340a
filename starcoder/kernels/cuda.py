"""Packed weights as torch's own int4 matmul on CUDA wants them: bfloat16, any group size of ours.

An int8 is 16 times its upper half plus its lower half, so int8 takes two int4 matmuls over the same bytes.
Torch's int8 matmuls take one scale for a whole output, which groups are not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from starcoder.kernels.packed import COLUMNS, Packed, unpack

# From here on weights are unpacked for a matmul of bfloat16: the int4 one is made for decoding. Not measured.
MANY_ROWS = 64
_INPUTS_OF_A_TILE = 16

Convert = Callable[[Tensor, int], Tensor]
Multiply = Callable[[Tensor, Tensor, int, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Tiled:
    """A packed matrix in the order of CUDA's tensor cores; each part is 4 bits of every weight."""

    columns: int
    inputs: int
    group_size: int
    parts: tuple[tuple[Tensor, Tensor], ...]  # nibbles, and (groups, columns, 2) scales and offsets


def convert_for_cuda(nibbles: Tensor, tiles: int) -> Tensor:
    """(columns, inputs) int32 of 0 to 15, in tiles; `tiles` of 16 inputs lie together."""
    halves = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).to(torch.uint8)
    found: Tensor = torch.ops.aten._convert_weight_to_int4pack(halves, tiles)
    return found


def tiled(packed: Packed, convert: Convert = convert_for_cuda) -> Tiled:
    """Reorder a matrix; it takes as many bits again, and two bytes more for each group.

    Scales are rounded to bfloat16, by a 512th at most. `convert` is that of the device.
    """
    integers, multiples, units = unpack(packed)
    scales = multiples.float() * units.float()[:, None]
    missing = -integers.size(0) % COLUMNS, -integers.size(1) % packed.group_size
    integers = F.pad(integers.int(), (0, missing[1], 0, missing[0]))
    scales = F.pad(scales, (0, 0, 0, missing[0]))
    tiles = next(count for count in (8, 4, 2) if integers.size(1) % (count * _INPUTS_OF_A_TILE) == 0)

    def part(nibbles: Tensor, scales: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.stack([scales.T, offsets.T], dim=2)
        return convert(nibbles.contiguous(), tiles), both.bfloat16().contiguous()

    # What torch multiplies with is (nibble - 8) x scale + offset.
    upper, lower = (integers >> 4) + 8, integers & 15
    if packed.scheme == "int4":
        parts = [part(integers + 8, scales, torch.zeros_like(scales))]
    else:
        parts = [
            part(upper, 16 * scales, torch.zeros_like(scales)),
            part(lower, scales, 8 * scales),
        ]
    return Tiled(packed.columns, packed.inputs, packed.group_size, tuple(parts))


def small_batch(x: Tensor, weight: Tiled, multiply: Multiply = torch.ops.aten._weight_int4pack_mm) -> Tensor:
    """x (rows, inputs) bfloat16 times the transposed weight: (rows, columns) bfloat16."""
    groups = -(-weight.inputs // weight.group_size)
    x = F.pad(x, (0, groups * weight.group_size - weight.inputs)).contiguous()
    products = [multiply(x, nibbles, weight.group_size, scales) for nibbles, scales in weight.parts]
    return torch.stack(products).sum(0)[:, : weight.columns]


def supports_int4(x: Tensor) -> bool:
    """Whether torch's int4 matmul takes x: bfloat16, on CUDA of compute capability 8.0 or newer."""
    return x.is_cuda and x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (8, 0)
