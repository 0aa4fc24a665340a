"""`starcoder doctor`: what this installation consists of, for a first look and for bug reports."""

import json
import os
import platform
from typing import Annotated

from starcoder import __version__
from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions

_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "cyclopts")


def run(*, printed: Annotated[OutputOptions, Section("Output")] = OutputOptions()) -> None:
    """Show versions, processor, the chosen device and its reason, and the native kernels.

    $ starcoder doctor --json
    """
    report = _report()
    if printed.json:
        print(json.dumps(report))
        return
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:{width}}  {value}")


def _report() -> dict[str, str | int]:
    from importlib import metadata

    import torch  # takes seconds, so it is imported when it is needed

    from starcoder import devices
    from starcoder.kernels import describe

    chosen = devices.choose_device()
    return {
        "starcoder": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "cpu": f"{os.cpu_count()} logical cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "kernels": describe(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "device": f"{chosen.device} ({chosen.reason})",
    }
