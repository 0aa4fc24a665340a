"""Options of the command line itself, and the model that a verb runs."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starcoder.engine.settings import EngineSettings, ModelSettings

if TYPE_CHECKING:
    from starcoder.engine.local import Model


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """What is printed, and where options come from."""

    json: bool = False
    """Print one JSON document instead of text."""
    verbose: bool = False
    """Log what happens and how long it takes on stderr."""
    config: Path | None = None
    """TOML file with options by the same names; options of the command line override it."""

    def start_logging(self) -> None:
        """Send the package's log to stderr: events with --verbose, otherwise warnings only."""
        level = logging.INFO if self.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


def load(model: ModelSettings, engine: EngineSettings | None = None) -> "Model":
    """The model in an engine.

    Raises:
        ConfigError, CheckpointError: as `starcoder.load`.
    """
    from starcoder.engine import local  # imports torch

    return local.load(
        model.model,
        device=model.device,
        dtype=model.dtype,
        quantize=model.quantize,
        adapter=model.adapter,
        threads=model.threads,
        settings=engine,
    )
