"""int8 and int4 linear layers and tables in place of torch's, and what rounding them cost.

Knows `nn.Linear` and `nn.Embedding`, nothing of any model. The packed layout is that of
`starcoder.kernels.packed`, in memory and on disk.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from starcoder.errors import CheckpointError, ConfigError
from starcoder.kernels import cuda
from starcoder.kernels.memory import Arena
from starcoder.kernels.ops import quantized_linear, quantized_rows
from starcoder.kernels.packed import COLUMNS, Packed, Scheme, dequantize, pack, packed_shapes, unpack
from starcoder.kernels.rounding import round_rows

Method = Literal["nearest", "search"]

__all__ = ["LayerReport", "Method", "QuantizedEmbedding", "QuantizedLinear", "Report", "Scheme"]
__all__ += ["expect", "quantize", "quantize_matrix", "quantize_with_error", "require_finite"]

# Weights that share a scale, which costs a byte: 4.25 and 8.13 bits a weight (benchmarks/quality.py).
_GROUP_SIZES: dict[Scheme, int] = {"int4": 32, "int8": 64}


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What one matrix became."""

    name: str
    scheme: Scheme
    columns: int
    inputs: int
    size_bytes: int
    error: float  # root of the squared error over the squared weights


@dataclass(frozen=True, slots=True)
class Report:
    """What a model became. A matrix shared by two layers is listed and counted once."""

    layers: tuple[LayerReport, ...]
    num_parameters: int
    size_bytes: int  # of all weights, packed and not

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / self.num_parameters


class _Quantized(nn.Module):
    """A packed matrix as buffers, so that it is saved, loaded and moved like any weight."""

    data: Tensor
    scales: Tensor

    def __init__(self, packed: Packed):
        super().__init__()
        self.register_buffer("data", packed.data)
        self.register_buffer("scales", packed.scales)
        self._shape = replace(packed, data=torch.empty(0), scales=torch.empty(0))

    @property
    def packed(self) -> Packed:
        return replace(self._shape, data=self.data, scales=self.scales)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The floats that the matrix stands for."""
        return dequantize(self.packed, dtype)

    def extra_repr(self) -> str:
        shape = self._shape
        return f"{shape.inputs} -> {shape.columns}, {shape.scheme}, groups of {shape.group_size}"


class QuantizedLinear(_Quantized):
    """`nn.Linear` with packed weights; on a CPU activations are rounded to 8 bits as they come.

    On CUDA a few rows of bfloat16 take torch's int4 matmul, over a second copy of the bits made at first use.
    """

    def __init__(self, packed: Packed, bias: Tensor | None):
        super().__init__(packed)
        self._tiled: tuple[Tensor, cuda.Tiled] | None = None  # of which data
        self.in_features, self.out_features = packed.inputs, packed.columns
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = self._shape
        num_rows = x.numel() // shape.inputs
        if (
            cuda.supports_int4(x)
            and 0 < num_rows < cuda.MANY_ROWS
            and not (torch.is_grad_enabled() and x.requires_grad)
        ):
            return self._by_tensor_cores(x)
        out: Tensor = quantized_linear(
            x,
            self.data,
            self.scales,
            self.bias,
            shape.scheme,
            shape.columns,
            shape.inputs,
            shape.group_size,
        )
        return out

    def _by_tensor_cores(self, x: Tensor) -> Tensor:
        if self._tiled is None or self._tiled[0] is not self.data:
            self._tiled = self.data, cuda.tiled(self.packed)
        out = cuda.small_batch(x.reshape(-1, self.in_features), self._tiled[1])
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def select(self, rows: Tensor) -> "QuantizedLinear":
        """The layer of these outputs, a copy: what they multiply with stays exactly the same."""
        integers, multiples, units = unpack(self.packed)
        rows = rows.to(integers.device)
        shape = self._shape
        part = pack(integers[rows], multiples[rows], units[rows], shape.scheme, shape.group_size)
        return QuantizedLinear(part, None if self.bias is None else self.bias.detach()[rows])


class QuantizedEmbedding(_Quantized):
    """`nn.Embedding` with a packed table."""

    def __init__(self, packed: Packed, dtype: torch.dtype):
        super().__init__(packed)
        self.dtype = dtype

    def forward(self, which: Tensor) -> Tensor:
        return quantized_rows(which, self.packed, self.dtype)


def quantize(model: nn.Module, scheme: Scheme, *, method: Method = "search") -> Report:
    """Replace every linear layer and table of `model` in place, one at a time; the report says the cost.

    On a CPU what stays unquantized (norms, biases) becomes float32. Tables that no linear layer shares
    (positions) take int8 in both schemes. Needs memory for one layer beyond the model.

    Raises:
        ConfigError: the model is quantized already.
    """
    if any(isinstance(module, _Quantized) for module in model.modules()):
        raise ConfigError("the model is quantized already", "quantize the checkpoint that has all its bits")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    layers: list[LayerReport] = []
    done: dict[int, Packed] = {}
    arena = Arena()
    for site in _sites(model, scheme):
        weight = site.module.weight.detach()
        if id(site.module.weight) not in done:
            packed, error = quantize_with_error(weight, site.scheme, site.group_size, method, arena)
            require_finite(site.name, error)
            done[id(site.module.weight)] = packed
            size, (columns, inputs) = packed.size_bytes, weight.shape
            layers.append(LayerReport(site.name, site.scheme, columns, inputs, size, error))
        site.put(done[id(site.module.weight)])
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
    size_bytes = sum(layer.size_bytes for layer in layers)
    size_bytes += sum(parameter.nbytes for parameter in model.parameters())
    return Report(tuple(layers), num_parameters, size_bytes)


def require_finite(name: str, error: float) -> None:
    """Raises: CheckpointError: the matrix that was rounded holds NaN or infinity."""
    if not math.isfinite(error):
        raise CheckpointError(
            f"the weights of {name!r} are not finite: they hold NaN or infinity",
            "the checkpoint is damaged, by a merge or by training in float16; take an earlier one",
        )


def expect(model: nn.Module, scheme: Scheme) -> None:
    """Replace the same layers of a `model` on the meta device by empty packed ones, to load a state into.

    Afterwards `model.load_state_dict(state, assign=True)` takes tensors as they are mapped from a file.
    Shared matrices stay shared: their names are expected once per layer, as in any state dict.
    """
    shared: dict[int, Packed] = {}
    for site in _sites(model, scheme):
        columns, inputs = site.module.weight.shape
        data, scales = packed_shapes(site.scheme, columns, inputs, site.group_size)
        empty = torch.empty(data, dtype=torch.uint8, device="meta")
        empty_scales = torch.empty(scales, dtype=torch.uint8, device="meta")
        packed = Packed(site.scheme, columns, inputs, site.group_size, empty, empty_scales)
        site.put(shared.setdefault(id(site.module.weight), packed))


@dataclass(frozen=True, slots=True)
class _Site:
    """A layer to be replaced, and how."""

    name: str
    module: nn.Linear | nn.Embedding
    parent: nn.Module
    attribute: str
    scheme: Scheme
    group_size: int

    def put(self, packed: Packed) -> None:
        new: nn.Module
        if isinstance(self.module, nn.Linear):
            bias = self.module.bias
            new = QuantizedLinear(packed, None if bias is None else bias.detach())
        else:
            weight = self.module.weight
            new = QuantizedEmbedding(packed, torch.float32 if weight.device.type != "cuda" else weight.dtype)
        setattr(self.parent, self.attribute, new.train(self.module.training))


def _sites(model: nn.Module, scheme: Scheme) -> Iterator[_Site]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    tables = {id(module.weight) for _, module in found if isinstance(module, nn.Embedding)}
    heads = {id(module.weight) for _, module in found if isinstance(module, nn.Linear)}
    for name, module in found:
        parent, _, attribute = name.rpartition(".")
        own: Scheme = "int8" if id(module.weight) in tables - heads else scheme
        yield _Site(name, module, model.get_submodule(parent), attribute, own, _GROUP_SIZES[own])


def quantize_matrix(
    weight: Tensor, scheme: Scheme, *, group_size: int | None = None, method: Method = "search"
) -> Packed:
    """Round a matrix (columns, inputs), a million weights at a time.

    `nearest` scales each group by its largest weight; for int4 `search` tries other scales too and keeps
    the one with the least squared error.
    """
    return quantize_with_error(weight, scheme, group_size or _GROUP_SIZES[scheme], method, Arena())[0]


def quantize_with_error(
    weight: Tensor, scheme: Scheme, group_size: int, method: Method, arena: Arena
) -> tuple[Packed, float]:
    """As `quantize_matrix`, in `arena`, and the root of the squared error over the squared weights."""
    columns, inputs = weight.shape
    data_shape, scale_shape = packed_shapes(scheme, columns, inputs, group_size)
    data = arena.empty(data_shape, torch.uint8, weight.device)
    scales = arena.empty(scale_shape, torch.uint8, weight.device)
    # At 8 bits, cutting the largest weight costs more than a finer scale gains: one candidate.
    factors = _FACTORS if method == "search" and scheme == "int4" else [1.0]
    step = max(1, (1 << 20) // (COLUMNS * inputs)) * COLUMNS
    wrong = total = 0.0
    for start in range(0, columns, step):
        rows = weight[start : start + step].detach().float()
        part, part_wrong, part_total = round_rows(rows, scheme, group_size, factors)
        data[start // COLUMNS :][: len(part.data)] = part.data
        scales[start // COLUMNS :][: len(part.scales)] = part.scales
        wrong, total = wrong + part_wrong, total + part_total
    packed = Packed(scheme, columns, inputs, group_size, data, scales)
    return packed, (wrong / total) ** 0.5 if total else 0.0


# Of the scale that fits the largest weight. Finer steps gain less than a thousandth of the error.
_FACTORS = [0.6 + 0.025 * step for step in range(20)]
