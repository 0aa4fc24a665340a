"""Which device a model runs on: CUDA, then MPS where it works, then the CPU."""

from dataclasses import dataclass

import torch

from starcoder.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Choice:
    """A device, and why it was chosen."""

    device: torch.device
    reason: str


def choose_device(asked: str | None = None) -> Choice:
    """The device that was asked for, or the best there is for None and "auto".

    Raises:
        ConfigError: this machine has no such device.
    """
    if asked not in (None, "auto"):
        return Choice(_named(str(asked)), "asked for")
    if torch.cuda.is_available():
        return Choice(torch.device("cuda"), f"CUDA is available: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        if (failure := _mps_failure()) is None:
            return Choice(torch.device("mps"), "no CUDA device; MPS works")
        return Choice(torch.device("cpu"), f"no CUDA device; MPS is there but fails: {failure}")
    return Choice(torch.device("cpu"), "no CUDA and no MPS device")


def _named(asked: str) -> torch.device:
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise ConfigError(
            f"there is no device {asked!r}", "expected cpu, cuda, cuda:1, mps or auto"
        ) from None
    num_devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= num_devices:
        raise ConfigError(f"this machine has no device {asked!r}", "--device auto chooses one that is there")
    return device


def _mps_failure() -> str | None:
    """What goes wrong on MPS, on a small case of what a model does; None: nothing."""
    x = torch.arange(12, dtype=torch.float32).view(1, 1, 3, 4) / 12
    try:
        there = x.to("mps")
        got = torch.nn.functional.scaled_dot_product_attention(there, there, there, is_causal=True).cpu()
    except (RuntimeError, NotImplementedError) as error:
        return (str(error).split("\n") or [type(error).__name__])[0]
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    return None if torch.allclose(got, expected, atol=1e-4) else "attention differs from the CPU's"
