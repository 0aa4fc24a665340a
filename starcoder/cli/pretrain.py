"""`starcoder pretrain`: from a prepared data set to a checkpoint folder, as a recipe says."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.large_pages import ask_for_large_pages
from starcoder.errors import ConfigError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainOptions:
    """What of a recipe the command line may override."""

    output: str | None = None
    """Folder of the run; the recipe's if not given."""
    device: str | None = None
    """cpu or cuda; the recipe's if not given."""
    threads: int | None = None
    """CPU threads; the recipe's if not given."""
    verbose: Annotated[bool, Parameter(alias="-v", show_default=False)] = False
    """Log each stage on stderr."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; expected at least 1")


def run(recipe: Path, /, *, options: PretrainOptions = PretrainOptions()) -> None:
    """Train a model from scratch: tokenizer, training, export.

    Progress goes to stderr, the path of the exported checkpoint to stdout. An
    interrupted run goes on where it stopped when it is started again.

    $ starcoder prepare sources/* --languages Python --output runs/nano/data
    $ starcoder pretrain recipes/nano.toml

    Args:
        recipe: TOML file; recipes/nano.toml is one to start from.
    """
    import logging
    import sys

    from rich.console import Console

    ask_for_large_pages()
    from starcoder.train import pretrain  # imports torch

    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    chosen = {name: getattr(options, name) for name in ("output", "device", "threads")}
    overrides = {name: value for name, value in chosen.items() if value is not None}
    print(pretrain.run(replace(pretrain.Recipe.read(recipe), **overrides), Console(stderr=True)))
