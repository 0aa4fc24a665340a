"""Run, serve, fine-tune and measure StarCoder code models on your own machine.

The public names below are imported on first use, so that `import starcoder` costs nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starcoder.config import ModelConfig
    from starcoder.engine.engine import Engine
    from starcoder.engine.local import Model, load
    from starcoder.engine.settings import EngineSettings
    from starcoder.errors import (
        CapacityError,
        CheckpointError,
        ConfigError,
        RequestError,
        SandboxError,
        StarcoderError,
    )
    from starcoder.request import (
        Chunk,
        Completion,
        CompletionRequest,
        ContextFile,
        Generator,
        SamplingParams,
        TokenLogprob,
        Usage,
    )

__version__ = "0.1.0"

__all__ = [
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Completion",
    "CompletionRequest",
    "ConfigError",
    "ContextFile",
    "Engine",
    "EngineSettings",
    "Generator",
    "Model",
    "ModelConfig",
    "RequestError",
    "SamplingParams",
    "SandboxError",
    "StarcoderError",
    "TokenLogprob",
    "Usage",
    "load",
]

# In this order, so that a light name never imports torch.
_HOMES = ("starcoder.errors", "starcoder.config", "starcoder.request", "starcoder.engine.local")


def __getattr__(name: str) -> object:
    from importlib import import_module

    for home in _HOMES if name in __all__ else ():
        module = import_module(home)
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'starcoder' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
