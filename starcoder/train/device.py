"""What the device can do: which precision to train in, and how many operations a second it reaches."""

import time

import torch

from starcoder.errors import ConfigError
from starcoder.train.settings import Precision

_SIZE = 1024  # of the matrices that are multiplied to measure a CPU; a GPU needs larger ones
_GPU_SIZE = 8192


def choose_precision(device: torch.device, asked: Precision | None) -> Precision:
    """bfloat16 on a GPU that has it, float16 with loss scaling on one that has not, else float32.

    Raises:
        ConfigError: the device cannot do what was asked for.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if asked == "bfloat16" and not has_bfloat16:
            raise ConfigError("this GPU has no bfloat16", "--precision float16")
        return asked or ("bfloat16" if has_bfloat16 else "float16")
    if asked == "float16":
        raise ConfigError(f"float16 does not train on {device.type}", "--precision float32 or bfloat16")
    return asked or "float32"


def peak_flops(device: torch.device, precision: Precision) -> float:
    """Operations a second of one large matrix product here: MFU is a share of it."""
    size = _GPU_SIZE if device.type == "cuda" else _SIZE
    matrix = torch.ones(size, size, device=device, dtype=getattr(torch, precision))
    best_s = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * size**3 / best_s
