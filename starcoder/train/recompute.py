"""Keeps less for the backward pass: what norms and GELU give is made again from what they were given.

Products would keep both for their weights' gradients, and they cost little beside those products: a third of
what is kept. Does nothing under autocast, where products keep casts, nor where whole blocks are computed
again (`Transformer.is_recomputed`).
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from starcoder.model import Block, Transformer


@contextmanager
def recompute(model: Transformer) -> Iterator[None]:
    """Inside, forward passes of `model` keep less for gradients."""
    if model.is_recomputed:
        yield
        return
    keeper = _Keeper(model)
    handles: list[RemovableHandle] = [
        model.register_forward_pre_hook(keeper.enter),
        model.register_forward_hook(keeper.leave, always_call=True),
    ]
    for block in model.blocks:
        assert isinstance(block, Block), "a Transformer is made of them"
        handles += _watch(block, keeper)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make a tensor again from `source`, seen as `shape`."""

    source: Tensor
    make: Callable[[Tensor], Tensor]
    shape: torch.Size


@dataclass(frozen=True, slots=True)
class _Known:
    """A tensor of the pass under way, as long as it lives, and how to have it again."""

    tensor: weakref.ref[Tensor]
    source: Tensor
    make: Callable[[Tensor], Tensor]


class _Keeper:
    """Decides for each tensor that autograd wants to keep."""

    def __init__(self, model: Transformer):
        self._device_type = model.norm.weight.device.type
        self._known: dict[int, _Known] = {}
        self._last: tuple[Tensor, Tensor] | None = None  # a source and what was made of it
        self._hooks: saved_tensors_hooks | None = None

    @property
    def is_active(self) -> bool:
        return self._hooks is not None

    def enter(self, model: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and not torch.is_autocast_enabled(self._device_type):
            self._last = None
            self._hooks = saved_tensors_hooks(self.pack, self.unpack)
            self._hooks.__enter__()

    def leave(self, model: nn.Module, args: Any, out: Any) -> None:
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None
        self._known.clear()

    def know(self, tensor: Tensor, source: Tensor, make: Callable[[Tensor], Tensor]) -> None:
        self._known[tensor.data_ptr()] = _Known(weakref.ref(tensor), source, make)

    def pack(self, x: Tensor) -> Tensor | _Recipe:
        found = self._known.get(x.data_ptr())
        # Its memory may have gone to another tensor, or only a part of it be wanted.
        known = None if found is None else found.tensor()
        if known is not None and known.dtype == x.dtype and known.numel() == x.numel() and x.is_contiguous():
            assert found is not None, "what is known was found"
            return _Recipe(found.source, found.make, x.shape)
        return x

    def unpack(self, kept: Tensor | _Recipe) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        # Several layers read one tensor, one after the other.
        if self._last is None or self._last[0] is not kept.source:
            self._last = None
            with torch.no_grad():
                self._last = kept.source, kept.make(kept.source)
        return self._last[1].view(kept.shape)


def _watch(block: Block, keeper: _Keeper) -> list[RemovableHandle]:
    """Tell `keeper` what goes into norms and GELU, and what comes out."""
    sources = list[Tensor]()

    def into(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if keeper.is_active:
            sources.append(args[0].detach())

    def normed(norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if sources:
            keeper.know(out, sources.pop(), norm.forward)  # without its hooks

    def went_up(up: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        into(up, (out,))

    def goes_down(down: nn.Module, args: tuple[Tensor, ...]) -> None:
        if sources:
            keeper.know(args[0], sources.pop(), block.feed_forward.activate)

    norms = [block.norm1, block.norm2]
    return [
        *(norm.register_forward_pre_hook(into) for norm in norms),
        *(norm.register_forward_hook(normed) for norm in norms),
        block.feed_forward.up.register_forward_hook(went_up),
        block.feed_forward.down.register_forward_pre_hook(goes_down),
    ]
