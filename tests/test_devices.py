"""The device is CUDA, then MPS where it works, then the CPU, and the reason is known."""

import pytest
import torch

from starcoder import devices
from starcoder.devices import choose_device
from starcoder.errors import ConfigError


@pytest.fixture
def machine(monkeypatch):
    """Claims what a machine has."""

    def has(*, cuda: bool = False, mps: bool = False, mps_failure: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(devices, "_mps_failure", lambda: mps_failure)

    return has


@pytest.mark.parametrize("asked", [None, "auto"])
def test_the_best_device_that_works_is_chosen(machine, asked):
    machine(cuda=True, mps=True)
    assert (choose_device(asked).device.type, "H200" in choose_device(asked).reason) == ("cuda", True)
    machine(mps=True)
    assert choose_device(asked).device.type == "mps"
    machine(mps=True, mps_failure="no kernel")
    assert choose_device(asked).device.type == "cpu" and "no kernel" in choose_device(asked).reason
    machine()
    assert choose_device(asked).device.type == "cpu"


def test_a_device_that_was_asked_for_is_taken_or_refused(machine):
    machine(cuda=True)
    assert choose_device("cpu").device == torch.device("cpu")
    assert choose_device("cuda").device.type == "cuda"
    for wrong in ("cuda:1", "mps", "toaster"):
        with pytest.raises(ConfigError, match=wrong):
            choose_device(wrong)
