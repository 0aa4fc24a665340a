"""The training loop that all methods share: batches in, a trained model and resumable checkpoints out.

What differs comes from outside: which parameters learn (`requires_grad`), the loss, the stream of batches,
and, on several devices, the `Group`. A killed run resumes from the newest whole checkpoint and goes on bit
for bit as if it had not been killed: every random number is drawn from the seed and the step.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from starcoder.errors import CapacityError, StarcoderError
from starcoder.files import write_whole
from starcoder.model import Transformer
from starcoder.train import optimizer as optim
from starcoder.train.allocator import trimming
from starcoder.train.average import WeightAverage
from starcoder.train.checkpoints import Checkpoints, trainable
from starcoder.train.losses import sum_loss
from starcoder.train.packing import Batch
from starcoder.train.progress import Progress
from starcoder.train.recompute import recompute
from starcoder.train.settings import OptimizerSettings, Precision

log = logging.getLogger(__name__)

Loss = Callable[[Transformer, Batch], Tensor]
"""Summed over what is learned of the batch (`num_learned`); the loop divides by the whole step's number."""


class Stream(Protocol):
    """Endless batches whose place can be kept and found again."""

    @property
    def seq_length(self) -> int: ...

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """Where the next batch starts, as plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, as a stream that had come that far would."""


class Group(Protocol):
    """The processes that train one model together; every one draws the same rows and takes its share."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def total(self, value: float) -> float:
        """The sum of `value` over all processes."""

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes, where nothing else has done so."""


class Alone:
    """The group of one process."""

    rank, size = 0, 1

    def total(self, value: float) -> float:
        return value

    def average(self, parameters: Sequence[nn.Parameter]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How long and how often. A step sees `batch_size * seq_length` positions, whatever its rows' length.

    `short_share` of the steps use rows `1/short_factor` as long and as many more: attention is most of a
    small model's cost, and short rows halve it. Source: Li et al. 2022, arXiv:2108.06084.
    """

    max_steps: int
    batch_size: int = 8  # rows per optimizer step
    micro_batch_size: int | None = None  # rows per forward pass; None: all at once
    short_share: float = 0.0
    short_factor: int = 2
    eval_every: int = 200
    save_every: int = 200
    keep_checkpoints: int = 2
    keep_best: bool = False  # also the weights of the lowest held-out loss
    ema_decay: float | None = None  # of an average of the weights, evaluated and exported in their place
    precision: Precision = "float32"  # of products; what is below it trains under autocast
    seed: int = 0  # of dropout and noise


@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a run came."""

    step: int
    is_complete: bool  # False: it was told to stop; a checkpoint of `step` is there
    best: tuple[int, float] | None = None  # step and held-out loss of the best weights, if kept


def train(
    model: Transformer,
    data: Stream,
    settings: LoopSettings,
    optimizer_settings: OptimizerSettings,
    output: Path,
    *,
    progress: Progress,
    held_out: Sequence[Batch] = (),
    loss: Loss = sum_loss,
    group: Group | None = None,
    checkpoints: Checkpoints | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train `model` in place until `max_steps`; resumes from `output/checkpoints` where there is one.

    Raises:
        StarcoderError: the loss stopped being a number; `output/failure.json` tells more.
        CapacityError: not even one row fits in memory.
    """
    store = checkpoints or Checkpoints(output / "checkpoints", keep=settings.keep_checkpoints)
    run = _Run(model, data, settings, optimizer_settings, store, loss, group or Alone())
    step = run.resume()
    model.train()
    progress.start(step, settings.max_steps, settings.batch_size * data.seq_length)
    is_stopped = False
    with recompute(model), trimming(model):
        while step < settings.max_steps and not is_stopped:
            started = time.perf_counter()
            row, batch = run.step(step)
            step += 1
            _require_finite(row, step, model, batch, output)
            row["tokens_per_s"] = batch.num_tokens / (time.perf_counter() - started)
            is_stopped, is_last = should_stop(), step == settings.max_steps
            if held_out and (step % settings.eval_every == 0 or is_last):
                row["held_out_loss"] = run.evaluate(step, held_out)
            row["tokens"] = run.num_tokens
            progress.step(step, row)
            if step % settings.save_every == 0 or is_last or is_stopped:
                run.save(step)
    progress.finish()
    if run.average is not None and step >= settings.max_steps:
        run.average.copy_to(model)
    best = (run.best_step, run.best_loss) if settings.keep_best and math.isfinite(run.best_loss) else None
    return Outcome(step, step >= settings.max_steps, best)


class _Run:
    """One run's moving parts: what a checkpoint has to hold beside the model."""

    def __init__(
        self,
        model: Transformer,
        data: Stream,
        settings: LoopSettings,
        optimizer_settings: OptimizerSettings,
        store: Checkpoints,
        loss: Loss,
        group: Group,
    ):
        self.model, self.data, self.settings, self.loss = model, data, settings, loss
        self.optimizer_settings, self.store, self.group = optimizer_settings, store, group
        self.optimizers = optim.build(model, optimizer_settings)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = model.norm.weight.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self.micro_batch_size = settings.micro_batch_size
        self.best_step, self.best_loss = 0, math.inf
        self.num_tokens = 0  # learned so far
        self.average = None if settings.ema_decay is None else WeightAverage(model, settings.ema_decay)

    def resume(self) -> int:
        """Load the newest checkpoint; the number of steps done."""
        state = self.store.restore(self.model, self.optimizers)
        if state is None:
            return 0
        self.data.restore(state["position"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.micro_batch_size = state.get("micro_batch_size", self.micro_batch_size)
        self.best_step, self.best_loss = state.get("best", (0, math.inf))
        self.num_tokens = int(state.get("num_tokens", 0))
        if self.average is not None and "average" in state:
            self.average.restore(state["average"])
        return int(state["step"])

    def save(self, step: int) -> None:
        extra = {
            "position": self.data.state(),
            "scaler": self.scaler.state_dict(),
            "micro_batch_size": self.micro_batch_size,
            "best": (self.best_step, self.best_loss),
            "num_tokens": self.num_tokens,
        }
        if self.average is not None:
            extra["average"] = self.average.state()
        self.store.save(step, self.model, self.optimizers, extra)

    def step(self, step: int) -> tuple[dict[str, float], Batch]:
        """Update the weights once; what to record, and the batch seen."""
        settings, chosen = self.settings, self.optimizer_settings
        share = optim.rate_at(step, settings.max_steps, chosen)
        for param_group in (g for o in self.optimizers for g in o.param_groups):
            param_group["lr"] = param_group["peak_lr"] * share
        is_short = step < settings.short_share * settings.max_steps
        shorter = settings.short_factor if is_short else 1
        batch = self.data.next_batch(settings.batch_size * shorter, self.data.seq_length // shorter)
        loss = self._accumulate(batch, step, shorter)
        self.num_tokens += batch.num_labels
        for o in self.optimizers:
            self.scaler.unscale_(o)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, chosen.clip_norm))
        if math.isfinite(norm) or self.scaler.is_enabled():  # the scaler leaves out what overflowed
            for o in self.optimizers:
                self.scaler.step(o)
            self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        row = {"loss": loss, "learning_rate": share * chosen.learning_rate, "gradient_norm": norm}
        if self.scaler.is_enabled():
            row["loss_scale"] = self.scaler.get_scale()
        return row, batch

    def _accumulate(self, batch: Batch, step: int, shorter: int) -> float:
        """The step's gradients, as of the mean over all it learns; that mean. Halves what does not fit."""
        while True:
            micro = (self.micro_batch_size or self.settings.batch_size) * shorter
            try:
                return self._gradients(batch, step, micro)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                rows = micro // shorter
            # Outside of the handler: the error holds the failed pass's tensors alive.
            if rows <= 1:
                raise CapacityError(
                    f"out of memory with one row of {batch.tokens_BT.size(1)} tokens at a time",
                    "shorten rows, recompute activations or choose qlora; `starcoder plan` tells what fits",
                )
            self.micro_batch_size = rows // 2
            log.warning("out of memory: %d rows at a time from here on, not %d", self.micro_batch_size, rows)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _gradients(self, batch: Batch, step: int, micro: int) -> float:
        for o in self.optimizers:
            o.zero_grad(set_to_none=True)
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        total, loss, group = batch.num_learned, 0.0, self.group
        share = batch.padded(group.size).rows(group.rank, None, group.size)
        for start in range(0, len(share.lengths), micro):
            with _autocast(self.device, self.settings.precision):
                part = self.loss(self.model, share.rows(start, start + micro)) / max(1, total)
            # Sharded gradients are averaged over the group, and these are to be summed.
            self.scaler.scale(part * group.size).backward()  # type: ignore[no-untyped-call]
            loss += float(part.detach())
        group.average(self.parameters)
        return group.total(loss)

    def evaluate(self, step: int, held_out: Sequence[Batch]) -> float:
        """Mean held-out loss; keeps the weights where they are the best so far and that is wanted."""
        with nullcontext() if self.average is None else self.average.applied(self.model):
            loss = evaluate(self.model, held_out, loss=self.loss, precision=self.settings.precision)
            if self.settings.keep_best and loss < self.best_loss:
                self.best_step, self.best_loss = step, loss
                self.store.save_best(step, loss, self.model)
        return loss


def evaluate(
    model: Transformer, batches: Sequence[Batch], *, loss: Loss = sum_loss, precision: Precision = "float32"
) -> float:
    """Mean loss in nats per learned token over `batches`."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), _autocast(model.norm.weight.device, precision):
        total = sum(float(loss(model, batch)) for batch in batches)
    model.train(was_training)
    return total / sum(batch.num_learned for batch in batches)


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    if precision == "float32":
        return nullcontext()
    # A pass uses each weight once: a cache would only keep 16-bit copies of all of them to its end.
    return torch.autocast(device.type, getattr(torch, precision), cache_enabled=False)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU's allocator has no error class of its own.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _require_finite(row: dict[str, float], step: int, model: nn.Module, batch: Batch, output: Path) -> None:
    loss, norm = row["loss"], row["gradient_norm"]
    if math.isfinite(loss) and (math.isfinite(norm) or "loss_scale" in row):
        return
    broken = {
        "weights": [n for n, p in model.named_parameters() if not bool(p.isfinite().all())],
        "gradients": [
            n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())
        ],
    }
    report = {"step": step, **{k: str(v) for k, v in row.items()}, "not_finite": broken}
    report["learning_weights"] = len(trainable(model))
    report["tokens"] = [x[: batch.tokens_BT.size(1)] for x in batch.tokens_BT.tolist()]
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "failure.json", json.dumps(report) + "\n")
    first = (broken["weights"] or broken["gradients"] or ["none"])[0]
    raise StarcoderError(
        f"loss is {loss} and the gradient's norm {norm} at step {step}; first not finite: {first}",
        f"lower the learning rate; {output / 'failure.json'} has the step's tokens, and the last checkpoint "
        "before this step is kept",
    )
