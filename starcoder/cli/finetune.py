"""`starcoder finetune`: train a model further on your own code, questions or dialogues."""

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from starcoder.cli.flags import Section
from starcoder.cli.large_pages import ask_for_large_pages
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError
from starcoder.train.recipe import Recipe

if TYPE_CHECKING:
    from starcoder.train.finetune import Result

_STOPPED = 128 + signal.SIGTERM  # what a shell reports for a program that the signal ended

# Flags of the original project's scripts, by what they are called here.
OLD_NAMES = {
    "model-path": "model",
    "dataset-name": "data",
    "size-valid-set": "validation-documents",
    "input-column-name": "prompt-column",
    "output-column-name": "completion-column",
    "lora-r": "rank",
    "lora-alpha": "alpha",
    "lora-dropout": "dropout",
    "lr-scheduler-type": "schedule",
    "num-warmup-steps": "warmup-steps",
    "output-dir": "output",
    "eval-freq": "eval-every",
    "save-freq": "save-every",
}
# Those that choose nothing here, with their number of values: accepted, so that old command lines run.
IGNORED = {
    "bf16": 0,
    "no-fp16": 0,
    "no-gradient-checkpointing": 0,
    "log-freq": 1,
    "num-workers": 1,
    "local-rank": 1,
}


def run(
    config: Path | None = None,
    *,
    recipe: Annotated[Recipe, Section("Training", without=("seq_length",))] = Recipe(),
    seq_length: int | None = None,
    threads: int | None = None,
    verify_packing: bool = False,
    printed: Annotated[OutputOptions, Section("Output", without=("config",))] = OutputOptions(),
) -> None:
    """Train a model further: on code, on questions and answers, or on dialogues.

    Shows three samples with what the model will learn, then trains. The output
    folder holds the adapter (or, with --method full, the model), metrics.jsonl,
    loss.png and completions from before and after. The same command resumes a run.

    $ starcoder finetune --data ./my-repository --output runs/mine

    $ starcoder finetune --data pairs.jsonl --prompt-column question --completion-column answer -o runs/qa

    $ starcoder finetune recipes/repo.toml

    Args:
        config: TOML file with options by the same names; options of the command line override it.
        seq_length: Number of tokens in a row; 2048 by default, or all that the model takes if that is less.
        threads: Number of CPU threads; torch's choice by default.
        verify_packing: Compare packed with separate documents on this model and data; trains nothing.
    """
    if not recipe.output and not verify_packing:
        raise ConfigError("there is no folder to write to", "name one with --output, such as runs/mine")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    recipe = complete(recipe, seq_length)
    ask_for_large_pages()
    import torch
    from rich.console import Console

    from starcoder.train import finetune

    printed.start_logging()
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    if verify_packing:
        report = finetune.check_packing(recipe, console)
        print(json.dumps(asdict(report) | {"is_equal": report.is_equal}))
        if not report.is_equal:
            raise SystemExit(1)
        return
    result = finetune.run(recipe, console, should_stop=_terminated())
    if not result.outcome.is_complete:
        console.print(f"stopped at step {result.outcome.step}; the same command resumes", highlight=False)
        raise SystemExit(_STOPPED)
    if os.environ.get("RANK", "0") == "0":  # of several processes one reports
        print(json.dumps(_document(result)) if printed.json else result.folder)


def complete(recipe: Recipe, seq_length: int | None) -> Recipe:
    """The recipe with what depends on the model."""
    if seq_length is None:
        from starcoder import checkpoint  # imports torch
        from starcoder.train.memory import usual_length

        seq_length = usual_length(checkpoint.read_config(checkpoint.resolve_config(recipe.model)))
    return replace(recipe, seq_length=seq_length, adapter=replace(recipe.adapter, seed=recipe.seed))


def _terminated() -> "_Flag":
    """Whether the process received SIGTERM: it finishes its step and writes a checkpoint first."""
    flag = _Flag()
    signal.signal(signal.SIGTERM, flag.set)
    return flag


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self, *_: object) -> None:
        self._is_set = True

    def __call__(self) -> bool:
        return self._is_set


def _document(result: "Result") -> dict[str, object]:
    return {
        "output": str(result.folder),
        "steps": result.outcome.step,
        "held_out_loss_before": result.held_out_before,
        "held_out_loss_after": result.held_out_after,
        "best": result.outcome.best,
    }
