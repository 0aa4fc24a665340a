"""`starcoder prepare`: your own repositories and folders as a clean, documented data set to train on."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError
from starcoder.prepare.settings import PrepareSettings


def run(
    *inputs: str,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    explain: Path | None = None,
    settings: Annotated[PrepareSettings, Section("Data set")] = PrepareSettings(workers=os.cpu_count() or 1),
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Make a data set of repositories and folders: collect, clean, deduplicate, split and document.

    Nothing leaves this machine. The same command resumes a run that was stopped.

    $ starcoder prepare ~/code/service ~/code/lib@v2 https://example.com/app.git --output data/mine
    $ starcoder prepare --explain data/mine
    $ starcoder prepare --explain data/mine src/app.py
    $ starcoder finetune --data data/mine

    Args:
        inputs: Folders, git repositories and URLs, each with @REVISION if it is not HEAD.
        output: Folder to write the data set to.
        explain: Show the card of a prepared folder: what was collected, left out and masked. With paths
            as inputs, show what became of those files.
    """
    from starcoder.cli.evaluating import ProgressBar
    from starcoder.prepare import card, tables
    from starcoder.prepare.pipeline import prepare, read_figures

    printed.start_logging()
    if explain is not None:
        for path in inputs:
            for outcome in tables.explain(explain, path):
                values = ", ".join(f"{key} {value}" for key, value in outcome.items() if key != "outcome")
                print(json.dumps(outcome) if printed.json else f"{outcome['outcome']}: {values}")
        if inputs:
            return
        figures = read_figures(explain)
        print(json.dumps(figures) if printed.json else card.text(figures))
        return
    if output is None:
        raise ConfigError("there is no folder to write to", "name one with --output")
    with ProgressBar("preparing") as progress:
        figures = prepare(
            replace(settings, inputs=inputs),
            output,
            tell=lambda stage, done, total: progress(done, total, stage),
        )
    if printed.json:
        print(json.dumps({"output": str(output), **figures}))
        return
    print(
        f"{figures['num_documents']:,} of {figures['num_seen']:,} documents, "
        f"{figures['num_tokens']:,} tokens, written to {output}; "
        f"`starcoder prepare --explain {output}` shows the details"
    )
