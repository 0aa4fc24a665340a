"""Takes joined linear layers apart into those that the file keeps, and puts them together again."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from starcoder.adapters.settings import Layout, Parts, Selectable
from starcoder.errors import ConfigError


class Joined(nn.Module):
    """A linear layer in the parts in which files keep it."""

    def __init__(self, parts: Sequence[nn.Module], order: Sequence[int] | None):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        back = None if order is None else torch.tensor(order).argsort()
        self.register_buffer("back", back, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([part(x) for part in self.parts], dim=-1)
        back = cast(Tensor | None, self.back)
        return out if back is None else out.index_select(-1, back.to(out.device))


def take_apart(model: nn.Module, layout: Layout) -> nn.Module:
    """A tree of the file's names over the layers, in which PEFT finds what it looks for."""
    tree = nn.Module()
    for path, parts in layout.items():
        layer = model.get_submodule(path)
        for name, part in zip(parts.names, _split(layer, parts), strict=True):
            *parents, last = name.split(".")
            place = tree
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(last, part)
    return tree


def _split(layer: nn.Module, parts: Parts) -> list[nn.Module]:
    if isinstance(layer, Joined):
        if any(not isinstance(part, nn.Linear | Selectable) for part in layer.parts):
            raise ConfigError("the model has an adapter already", "merge it first")
        return list(layer.parts)
    if not isinstance(layer, nn.Linear | Selectable):
        raise ConfigError("the model has an adapter already", "merge it first")
    if parts.is_whole:
        return [layer]
    if isinstance(layer, Selectable):
        rows = torch.tensor(parts.order) if parts.order else torch.arange(sum(parts.sizes))
        return [layer.select(part) for part in torch.split(rows, list(parts.sizes))]
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if parts.order is not None:
        rows = torch.tensor(parts.order, device=weight.device)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    weights = torch.split(weight, list(parts.sizes))
    biases = [None] * len(weights) if bias is None else torch.split(bias, list(parts.sizes))
    return [_linear(w, b) for w, b in zip(weights, biases, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def fused(layers: list[nn.Linear], order: tuple[int, ...] | None) -> nn.Linear:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    has_bias = layers[0].bias is not None
    bias = torch.cat([layer.bias.detach() for layer in layers]) if has_bias else None
    if order is not None:
        back = torch.tensor(order, device=weight.device).argsort()
        weight, bias = weight[back], None if bias is None else bias[back]
    return _linear(weight, bias)
