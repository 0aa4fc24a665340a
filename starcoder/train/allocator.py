"""Gives a CPU's free memory back to the system behind each block of a forward pass.

What a block frees lies between what it keeps for gradients, in holes that glibc's aligned allocations do not
fit again: left alone they grow with every block, to a fifth of a LoRA step at 164M parameters. Does nothing
but on a CPU with glibc.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from starcoder.kernels.memory import libc_function
from starcoder.model import Transformer

_LEAST_WIDTH = 512  # narrow blocks compute too little to pay for it: 1 to 14 % at 192, nothing at 768


@contextmanager
def trimming(model: Transformer) -> Iterator[None]:
    """Inside, forward passes of `model` that keep for gradients leave no holes in the heap."""
    trim, is_wide = libc_function("malloc_trim", ctypes.c_size_t), model.config.hidden_size >= _LEAST_WIDTH
    if trim is None or not is_wide or model.norm.weight.device.type != "cpu":
        yield
        return

    def give_back(block: nn.Module, args: object, out: object) -> None:
        if torch.is_grad_enabled():
            trim(0)

    handles = [block.register_forward_hook(give_back) for block in model.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
