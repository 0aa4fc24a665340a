"""Quantized linear layers and table look-ups as torch operators, native on a CPU and plain torch elsewhere.

Registered with torch, so `torch.compile` and meta tensors see one operator with a known shape.
"""

import ctypes
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from starcoder.errors import CheckpointError
from starcoder.kernels import native
from starcoder.kernels.packed import COLUMNS, Packed, Scheme, dequantize, scales_of

KINDS: dict[Scheme, int] = {"int8": native.INT8, "int4": native.INT4}


def as_native(weight: Packed | Tensor, bias: Tensor | None = None) -> native.Linear:
    """Pointers to a packed or float32 (columns, inputs) matrix; the caller keeps the tensors alive."""
    address = None if bias is None else bias.data_ptr()
    if isinstance(weight, Tensor):
        assert weight.dtype == torch.float32 and weight.is_contiguous(), "floats are read row by row"
        columns, inputs = weight.shape
        return native.Linear(native.FLOAT32, columns, inputs, 0, weight.data_ptr(), None, address)
    return native.Linear(
        KINDS[weight.scheme],
        weight.columns,
        weight.inputs,
        weight.group_size,
        weight.data.data_ptr(),
        weight.scales.data_ptr(),
        address,
    )


def native_linear(
    x: Tensor,
    weight: Packed | Tensor,
    bias: Tensor | None = None,
    *,
    threads: int | None = None,
    variant: str | None = None,
) -> Tensor:
    """x (rows, inputs) float32 times the transposed weight, plus bias: (rows, columns) float32.

    Integers multiply integers: each row of x is rounded to 8 bits per group of inputs. A row's result
    depends neither on the other rows nor on the number of threads. `variant` picks an instruction set.
    """
    library = native.library()
    assert library is not None, "callers ask `available` first"
    linear = as_native(weight, bias)
    x = x.contiguous()
    out = torch.empty(x.size(0), linear.columns)
    if x.size(0) == 0:
        return out
    status = library.sc_linear(
        _workspace.get().handle,
        None if variant is None else variant.encode(),
        threads or torch.get_num_threads(),
        ctypes.byref(linear),
        x.size(0),
        x.data_ptr(),
        out.data_ptr(),
    )
    native.check(status, f"a product of {x.size(0)} rows")
    return out


class _Workspaces(threading.local):
    """One for each thread that multiplies, so that none waits for another."""

    def __init__(self) -> None:
        self._own: native.Workspace | None = None

    def get(self) -> native.Workspace:
        if self._own is None:
            self._own = native.Workspace()
        return self._own


_workspace = _Workspaces()


def require_promise(packed: Packed, name: str) -> None:
    """Check that neighbours of int8 weights add up to at most 128 in size, as the AVX2 kernel needs.

    Raises:
        CheckpointError: they do not.
    """
    library = native.library()
    if packed.scheme != "int8" or packed.data.device.type != "cpu":
        return
    if library is not None:
        is_kept = library.sc_keeps_promise(torch.get_num_threads(), ctypes.byref(as_native(packed))) == 1
    else:
        pairs = packed.data.view(torch.int8).view(-1, 2)
        is_kept = all(
            int(part.sum(1, dtype=torch.int16).abs().max()) <= _PROMISED
            for part in torch.split(pairs, 1 << 24)
        )
    if not is_kept:
        raise CheckpointError(
            f"the int8 weights of {name!r} break the promise that two neighbours add up to at most 128",
            "another program wrote them (see docs/quantization.md, Files); quantize the original again",
        )


_PROMISED = 128


@torch.library.custom_op("starcoder::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    data: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    scheme: str,
    columns: int,
    inputs: int,
    group_size: int,
) -> Tensor:
    """x (..., inputs) through a packed linear layer: (..., columns) in x's dtype."""
    packed = Packed("int4" if scheme == "int4" else "int8", columns, inputs, group_size, data, scales)
    if x.device.type == "cpu" and native.library() is not None:
        rows = x.reshape(-1, inputs).float()
        out = native_linear(rows, packed, None if bias is None else bias.float())
        return out.view(*x.shape[:-1], columns).to(x.dtype)
    return F.linear(x, dequantize(packed, x.dtype), None if bias is None else bias.to(x.dtype))


@quantized_linear.register_fake
def _(
    x: Tensor,
    data: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    scheme: str,
    columns: int,
    inputs: int,
    group_size: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], columns)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, data, scales, _, scheme, columns, num_inputs, group_size = inputs
    ctx.save_for_backward(data, scales)
    ctx.shape = scheme, columns, num_inputs, group_size


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, *tuple[None, ...]]:
    """To x alone: packed weights do not learn. The rounding of x counts as its identity."""
    weight = dequantize(Packed(*ctx.shape, *ctx.saved_tensors), grad.dtype)
    return grad @ weight, *[None] * 7


quantized_linear.register_autograd(_backward, setup_context=_keep)


def quantized_rows(which: Tensor, packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows `which` (...) of a packed table, as floats (..., inputs)."""
    block, column = which.flatten() // COLUMNS, which.flatten() % COLUMNS
    lines = packed.data.view(*packed.data.shape[:2], COLUMNS, 4)
    data = lines[block, :, column]
    if packed.scheme == "int4":
        integers = torch.stack([data & 15, data >> 4], dim=2).view(torch.int8) - 8
    else:
        integers = data.contiguous().view(torch.int8)
    scales = scales_of(packed.scales[block])[torch.arange(len(block), device=block.device), :, column]
    scales = scales.repeat_interleave(packed.group_size, dim=1)
    rows = integers.flatten(1).float() * scales
    return rows[:, : packed.inputs].reshape(*which.shape, packed.inputs).to(dtype)
