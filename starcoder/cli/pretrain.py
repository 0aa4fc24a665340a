"""`starcoder pretrain`: from a prepared data set to a checkpoint folder, as a recipe says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.large_pages import ask_for_large_pages
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError


def run(
    recipe: Path,
    /,
    *,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    device: str | None = None,
    threads: int | None = None,
    printed: Annotated[OutputOptions, Section("Output", without=("config",))] = OutputOptions(),
) -> None:
    """Train a model from scratch: tokenizer, training, export.

    Progress goes to stderr, the path of the exported checkpoint to stdout. The same
    command resumes an interrupted run.

    $ starcoder prepare sources/* --languages Python --output runs/nano/data
    $ starcoder pretrain recipes/nano.toml

    Args:
        recipe: TOML file; recipes/nano.toml is one to start from.
        output: Folder of the run; the recipe's by default.
        device: cpu, cuda, cuda:1, mps or auto; the recipe's by default.
        threads: Number of CPU threads; the recipe's by default.
    """
    from rich.console import Console

    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    ask_for_large_pages()
    from starcoder.train import pretrain  # imports torch

    printed.start_logging()
    given = {"output": output, "device": device, "threads": threads}
    overrides = {name: value for name, value in given.items() if value is not None}
    folder = pretrain.run(replace(pretrain.Recipe.read(recipe), **overrides), Console(stderr=True))  # type: ignore[arg-type]
    print(json.dumps({"output": str(folder)}) if printed.json else folder)
