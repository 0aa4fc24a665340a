"""`starcoder doctor`: what this installation is made of, for a first look and for bug reports."""

import json as json_format
import os
import platform
from typing import Annotated

from cyclopts import Parameter

from starcoder import __version__

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "cyclopts")


def run(*, json: Annotated[bool, Parameter(show_default=False)] = False) -> None:
    """Show versions, processor, devices and whether the native kernels are there.

    $ starcoder doctor --json

    Args:
        json: Print one JSON document instead of text.
    """
    report = _report()
    if json:
        print(json_format.dumps(report))
        return
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:{width}}  {value}")


def _report() -> dict[str, str | int]:
    from importlib import metadata

    import torch  # takes seconds, so not before it is asked for

    from starcoder.kernels import describe

    return {
        "starcoder": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "cpu": f"{os.cpu_count()} logical cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "kernels": describe(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
