"""Rounding floats to packed integers: native where built, the same in torch elsewhere."""

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from starcoder.kernels import native
from starcoder.kernels.ops import as_native
from starcoder.kernels.packed import Packed, Scheme, dequantize, pack, packed_shapes


def round_rows(
    weight: Tensor, scheme: Scheme, group_size: int, factors: Sequence[float], *, is_native: bool = True
) -> tuple[Packed, float, float]:
    """Round a float32 matrix (columns, inputs); also the sums of squared errors and squared weights.

    int4: the scale of a group lets its largest weight be -8. int8: the least scale at which neighbours of
    one sign stay within 128 together, as the AVX2 kernel needs. `factors` of that scale, ascending, are
    tried as the nearest (int8: the next) multiple of the column's unit; the least squared error wins. The
    largest scale of a column is 127 units.
    """
    library = native.library() if is_native and weight.device.type == "cpu" else None
    if library is None:
        return _round_by_torch(weight, scheme, group_size, factors)
    weight = weight.contiguous()
    columns, inputs = weight.shape
    data, scales = packed_shapes(scheme, columns, inputs, group_size)
    empty = torch.empty(data, dtype=torch.uint8), torch.empty(scales, dtype=torch.uint8)
    packed = Packed(scheme, columns, inputs, group_size, *empty)
    wrong, total = ctypes.c_double(), ctypes.c_double()
    status = library.sc_quantize(
        None,
        torch.get_num_threads(),
        ctypes.byref(as_native(packed)),
        weight.data_ptr(),
        len(factors),
        (ctypes.c_float * len(factors))(*factors),
        ctypes.byref(wrong),
        ctypes.byref(total),
    )
    native.check(status, f"rounding {columns} columns")
    return packed, wrong.value, total.value


def _round_by_torch(
    weight: Tensor, scheme: Scheme, group_size: int, factors: Sequence[float]
) -> tuple[Packed, float, float]:
    columns, inputs = weight.shape
    groups = F.pad(weight, (0, -inputs % group_size)).view(-1, group_size)
    fitting = _fitting_int4(groups) if scheme == "int4" else _fitting_int8(groups)
    low, high = (-8, 7) if scheme == "int4" else (-127, 127)
    units = _above(fitting.view(columns, -1).abs().amax(1) * factors[-1] / 127)
    unit = units.float().repeat_interleave(len(groups) // columns).unsqueeze(1)

    def multiples_of(factor: float) -> Tensor:
        wanted = torch.where(unit == 0, 0, fitting * factor / unit)
        return wanted.round() if scheme == "int4" else wanted.ceil().clamp(max=127)

    def integers_of(scales: Tensor) -> Tensor:
        inverse = torch.where(scales == 0, 0, 1 / scales)
        return (groups * inverse).round_().clamp_(low, high)

    multiples = _best(groups, unit, map(multiples_of, factors), integers_of)
    integers = integers_of(multiples * unit).to(torch.int8).view(columns, -1)[:, :inputs]
    packed = pack(integers, multiples.to(torch.int8).view(columns, -1), units, scheme, group_size)
    wrong = float((dequantize(packed) - weight).double().square().sum())
    return packed, wrong, float(weight.double().square().sum())


def _above(x: Tensor) -> Tensor:
    """The least bfloat16 that is not below."""
    return ((x.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32).bfloat16()


def _fitting_int4(groups: Tensor) -> Tensor:
    return groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -8


def _fitting_int8(groups: Tensor) -> Tensor:
    pairs = groups.view(len(groups), -1, 2)
    together = torch.where(pairs.prod(-1) > 0, pairs.sum(-1).abs(), 0).amax(1, keepdim=True)
    largest = torch.maximum(groups.abs().amax(1, keepdim=True), together)
    return largest / 127


def _best(
    groups: Tensor, unit: Tensor, candidates: Iterator[Tensor], integers_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Of the candidates (n, 1), multiples of the unit, each group's with the least squared error."""
    best = least = None
    for multiples in candidates:
        scales = multiples * unit
        error = (integers_of(scales) * scales - groups).square_().sum(1, keepdim=True)
        if best is None or least is None:
            best, least = multiples, error
        else:
            best = torch.where(error < least, multiples, best)
            least = torch.minimum(error, least)
    assert best is not None, "there is at least one candidate"
    return best
