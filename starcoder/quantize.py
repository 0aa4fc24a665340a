"""int8 and int4 linear layers and tables in place of torch's, and what rounding them cost.

Knows `nn.Linear` and `nn.Embedding`, nothing of any model. The packed layout is that of
`starcoder.kernels.packed`, in memory and on disk.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from starcoder.errors import ConfigError
from starcoder.kernels.ops import quantized_linear, quantized_rows
from starcoder.kernels.packed import COLUMNS, Packed, Scheme, dequantize, pack, packed_shapes

Method = Literal["nearest", "search"]

__all__ = ["LayerReport", "Method", "QuantizedEmbedding", "QuantizedLinear", "Report", "Scheme"]
__all__ += ["expect", "quantize", "quantize_matrix", "relative_error"]

# Weights that share a scale. int4: 64 rounds as well as llama.cpp's 32 once scales are searched, at 4.25
# bits in place of 4.5. int8: 128 is 8.125 bits; halving it gains a tenth of an error that is small already.
_GROUP_SIZES: dict[Scheme, int] = {"int4": 64, "int8": 128}
# A table that is also the head decides every token, so its groups are finer.
_TIED_GROUP_SIZES: dict[Scheme, int] = {"int4": 32, "int8": 128}


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
    """`nn.Linear` with packed weights; activations are rounded to 8 bits as they come."""

    def __init__(self, packed: Packed, bias: Tensor | None):
        super().__init__(packed)
        self.in_features, self.out_features = packed.inputs, packed.columns
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = self._shape
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
    for site in _sites(model, scheme):
        weight = site.module.weight.detach()
        if id(site.module.weight) not in done:
            packed = quantize_matrix(weight, site.scheme, group_size=site.group_size, method=method)
            done[id(site.module.weight)] = packed
            size = packed.size_bytes
            error = relative_error(weight, packed)
            columns, inputs = weight.shape
            layers.append(LayerReport(site.name, site.scheme, columns, inputs, size, error))
        site.put(done[id(site.module.weight)])
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.float()
        parameter.requires_grad_(False)
    size_bytes = sum(layer.size_bytes for layer in layers)
    size_bytes += sum(parameter.nbytes for parameter in model.parameters())
    return Report(tuple(layers), num_parameters, size_bytes)


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
        empty_scales = torch.empty(scales, dtype=torch.bfloat16, device="meta")
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
        sizes = _TIED_GROUP_SIZES if id(module.weight) in tables else _GROUP_SIZES
        yield _Site(name, module, model.get_submodule(parent), attribute, own, sizes[own])


def quantize_matrix(
    weight: Tensor, scheme: Scheme, *, group_size: int | None = None, method: Method = "search"
) -> Packed:
    """Round a matrix (columns, inputs), a few rows at a time.

    `nearest` scales each group by its largest weight; for int4 `search` tries smaller scales too and keeps
    the one with the least squared error.
    """
    size = group_size or _GROUP_SIZES[scheme]
    columns, inputs = weight.shape
    (blocks, lines, width), (_, groups, _) = packed_shapes(scheme, columns, inputs, size)
    data = torch.empty(blocks, lines, width, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(blocks, groups, COLUMNS, dtype=torch.bfloat16, device=weight.device)
    # About a million weights at once: their copies stay in the cache's reach.
    step = max(1, (1 << 20) // (COLUMNS * groups * size)) * COLUMNS
    for start in range(0, columns, step):
        rows = weight[start : start + step].float()
        padded = nn.functional.pad(rows, (0, groups * size - inputs)).view(-1, size)
        integers, row_scales = _ROUND[scheme](padded, method)
        part = pack(integers.view(len(rows), -1), row_scales.view(len(rows), groups), scheme, size)
        data[start // COLUMNS :][: len(part.data)] = part.data
        scales[start // COLUMNS :][: len(part.scales)] = part.scales
    return Packed(scheme, columns, inputs, size, data, scales)


def _round_int4(x: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Groups (n, size) to integers -8..7; the largest weight is -8, so its sign is the scale's."""
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    factors = torch.linspace(0.6, 1.05, 16).tolist() if method == "search" else [1.0]
    candidates = (largest * (factor / -8) for factor in factors)
    scales = _best_scale(x, candidates, lambda x, scale: _divide(x, scale).clamp_(-8, 7))
    return _divide(x, scales).clamp_(-8, 7).to(torch.int8), scales


def _round_int8(x: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """Groups (n, size) to integers -127..127 whose neighbours of one sign add up to at most 128 in size.

    The scale is the least that allows this: at 8 bits, cutting a weight costs more than a finer scale gains.
    """
    pairs = x.view(len(x), -1, 2)
    together = torch.where(pairs.prod(-1) > 0, pairs.sum(-1).abs(), 0).amax(1, keepdim=True)
    largest = torch.maximum(x.abs().amax(1, keepdim=True), together)
    scales = (largest * ((1 + 2**-8) / 127)).bfloat16().float()  # never rounded below largest / 127
    return _divide(x, scales).to(torch.int8), scales


_ROUND = {"int4": _round_int4, "int8": _round_int8}


def _divide(x: Tensor, scales: Tensor) -> Tensor:
    inverse = torch.where(scales == 0, 0, 1 / scales.float())
    return (x * inverse).round_()


def _best_scale(
    x: Tensor, candidates: Iterator[Tensor], integers_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Of the candidates (n, 1), as stored in bfloat16, each group's with the least squared error."""
    best = least = None
    for candidate in candidates:
        scales = candidate.bfloat16().float()
        error = (integers_of(x, scales) * scales - x).square_().sum(1, keepdim=True)
        if best is None or least is None:
            best, least = scales, error
        else:
            best = torch.where(error < least, scales, best)
            least = torch.minimum(error, least)
    assert best is not None
    return best


def relative_error(weight: Tensor, packed: Packed) -> float:
    """Root of the squared error over the squared weights; computed a slice of the blocks at a time."""
    wrong = total = 0.0
    step = max(1, (1 << 20) // (COLUMNS * packed.inputs))
    for start in range(0, len(packed.data), step):
        rows = weight[start * COLUMNS : (start + step) * COLUMNS].float()
        data, scales = packed.data[start : start + step], packed.scales[start : start + step]
        part = replace(packed, columns=len(rows), data=data, scales=scales)
        wrong += float((dequantize(part) - rows).square().sum())
        total += float(rows.square().sum())
    return (wrong / total) ** 0.5 if total else 0.0
