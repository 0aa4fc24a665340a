"""`starcoder finetune`: a recipe -> an adapter or a fine-tuned checkpoint, and samples of what it writes."""

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from starcoder import checkpoint
from starcoder.devices import choose_device
from starcoder.errors import ConfigError
from starcoder.files import bundled, copy_model_files, read_jsonl, write_jsonl
from starcoder.train import loop, samples
from starcoder.train.checkpoints import Checkpoints
from starcoder.train.device import peak_flops
from starcoder.train.progress import Progress, Silent, connect, require, tell
from starcoder.train.recipe import Method, Recipe, claim
from starcoder.train.resize_vocab import flops_per_token
from starcoder.train.setup import Prepared, build, prepare
from starcoder.train.verify import PackingReport, verify_packing

if TYPE_CHECKING:
    from starcoder.train.distributed import Processes

__all__ = ["Method", "Prepared", "Recipe", "Result", "build", "check_packing", "prepare", "run"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run left in its output folder."""

    folder: Path
    outcome: loop.Outcome
    held_out_before: float | None
    held_out_after: float | None


def run(recipe: Recipe, console: Console, *, should_stop: Callable[[], bool] = lambda: False) -> Result:
    """Carry out `recipe`, going on where an earlier run of it stopped.

    Raises:
        ConfigError: settings, data and model do not fit one another.
        CheckpointError: the output folder is of another recipe.
    """
    for service in recipe.report_to:
        require(service)
    if not torch.distributed.is_torchelastic_launched():
        return _run(recipe, console, should_stop, None)
    from starcoder.train import distributed  # only several processes pay for its imports

    with distributed.processes(choose_device(recipe.device).device.type) as group:

        def anyone_should_stop() -> bool:
            return group.total(float(should_stop())) > 0

        shown = console if group.rank == 0 else Console(quiet=True)
        return _run(recipe, shown, anyone_should_stop, group)


def _run(
    recipe: Recipe,
    console: Console,
    should_stop: Callable[[], bool],
    group: "Processes | None",
) -> Result:
    output, is_first = Path(recipe.output), group is None or group.rank == 0
    if is_first:
        claim(recipe, output)
    ready = prepare(recipe, console, group)
    progress = _progress(recipe, ready, console) if is_first else Silent(output, console)
    store = Checkpoints(output / "checkpoints", keep=recipe.keep_checkpoints)
    if group is not None:
        from starcoder.train import distributed

        store = distributed.ShardedCheckpoints(store.folder, group, keep=store.keep)
    _show_samples(ready, output, "before", console, writes=is_first)
    before = _evaluate(ready)
    if group is not None:
        distributed.settle(ready.model)
    outcome = loop.train(
        ready.model,
        ready.stream,
        _loop_settings(recipe, ready),
        recipe.optimizer,
        output,
        progress=progress,
        held_out=ready.held_out,
        loss=ready.loss,
        group=group,
        checkpoints=store,
        should_stop=should_stop,
    )
    if not outcome.is_complete:
        return Result(output, outcome, before, None)
    if outcome.best is not None and outcome.best[0] < outcome.step:
        store.load_best(ready.model)
        tell(console, f"the best weights are those of step {outcome.best[0]}; they are kept")
    after = _evaluate(ready)
    _export(recipe, ready, output, group)
    _show_samples(ready, output, "after", console, writes=is_first)
    return Result(output, outcome, before, after)


def _progress(recipe: Recipe, ready: Prepared, console: Console) -> Progress:
    output = Path(recipe.output)
    trackers = tuple(connect(service, output, asdict(recipe)) for service in recipe.report_to)
    peak = peak_flops(ready.model.norm.weight.device, ready.precision) / flops_per_token(ready.model)
    return Progress(output, console, peak_tokens_per_s=peak, trackers=trackers)


def _loop_settings(recipe: Recipe, ready: Prepared) -> loop.LoopSettings:
    return loop.LoopSettings(
        max_steps=ready.max_steps,
        batch_size=recipe.batch_size * recipe.accumulation,
        micro_batch_size=recipe.batch_size,
        eval_every=recipe.eval_every,
        save_every=recipe.save_every,
        keep_checkpoints=recipe.keep_checkpoints,
        keep_best=bool(ready.held_out),
        precision=ready.precision,
        seed=recipe.seed,
    )


def check_packing(recipe: Recipe, console: Console) -> PackingReport:
    """Compare packed with separate on this recipe's model and data, in float32, and train nothing."""
    if recipe.method == "dpo":
        raise ConfigError("pairs are not packed", "--verify-packing goes with the other methods")
    with tempfile.TemporaryDirectory() as folder:  # a tokenizer that grows is written
        recipe = dataclasses.replace(recipe, precision="float32", output=folder)
        ready = prepare(recipe, console)
        return verify_packing(ready.model, ready.stream.next_batch(max(1, recipe.batch_size)))


def _show_samples(ready: Prepared, output: Path, when: str, console: Console, *, writes: bool) -> None:
    """Complete the surveyed samples and keep what the model wrote; a resumed run has those from before."""
    path = output / "samples.jsonl"
    rows = list(read_jsonl(path)) if path.exists() else []
    has_before = any(row["when"] == "before" for row in rows)
    # Processes that share a model complete together, whatever the first one has on disk.
    if torch.distributed.is_initialized() or not (has_before and when == "before"):
        rows = [row for row in rows if row["when"] != when]
        for example in ready.report.samples:
            made = samples.sample(ready.model, ready.tokenizer, example)
            rows.append({"when": when} | asdict(made))
            line = f"--- {when}: ...{made.prompt[-80:]!r} -> {made.completion!r}"
            tell(console, line)
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, rows)


def _evaluate(ready: Prepared) -> float | None:
    if not ready.held_out:
        return None
    return loop.evaluate(ready.model, ready.held_out, loss=ready.loss, precision=ready.precision)


def _export(recipe: Recipe, ready: Prepared, output: Path, group: "Processes | None") -> None:
    """Write the adapter or the whole model beside the run's records, with its tokenizer."""
    is_first = group is None or group.rank == 0
    if ready.adapter is not None and is_first:
        ready.adapter.save(output, base=recipe.model or str(bundled()))
    elif ready.adapter is not None:
        ready.adapter.state()  # shares are gathered by all
    elif group is not None:
        from starcoder.train import distributed

        distributed.save(ready.model, output, group)
    else:
        checkpoint.save(ready.model, output)
    if not is_first:
        return
    copy_model_files(ready.tokenizer_folder, output)
