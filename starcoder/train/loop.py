"""The training loop: packed batches in, a trained model and resumable checkpoints out.

A checkpoint holds weights, optimizers and the position in the data; it appears by rename, so a killed run
resumes from the newest whole one and goes on bit for bit as if it had not been killed.
"""

import logging
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starcoder.errors import CheckpointError, StarcoderError
from starcoder.model import Transformer, documents
from starcoder.train import optimizer as optim
from starcoder.train.packing import IGNORE, Batch, Lane, PackedDocuments, Position
from starcoder.train.progress import Progress

log = logging.getLogger(__name__)

_LOSS_ROWS = 2048  # logits of at most this many positions exist at once


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


def train(
    model: Transformer,
    data: PackedDocuments,
    settings: LoopSettings,
    optimizer_settings: optim.OptimizerSettings,
    output: Path,
    *,
    held_out: Sequence[Batch] = (),
    progress: Progress,
) -> None:
    """Train `model` in place until `max_steps`; resumes from `output/checkpoints` where there is one.

    Raises:
        StarcoderError: the loss stopped being a number.
    """
    optimizers = optim.build(model, optimizer_settings)
    first = restore(output / "checkpoints", model, optimizers, data)
    progress.start(first, settings.max_steps, settings.batch_size * data.seq_length)
    for step in range(first, settings.max_steps):
        started = time.perf_counter()
        share = optim.rate_at(step, settings.max_steps, optimizer_settings)
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = group["peak_lr"] * share
        is_short = step < settings.short_share * settings.max_steps
        loss, num_learnt = _accumulate(model, data, settings, settings.short_factor if is_short else 1)
        norm = nn.utils.clip_grad_norm_(model.parameters(), optimizer_settings.clip_norm)
        if not math.isfinite(loss) or not torch.isfinite(norm):
            raise StarcoderError(
                f"loss is {loss} and the gradient's norm {float(norm)} at step {step + 1}",
                "lower the learning rate; the last checkpoint before this step is kept",
            )
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        row: dict[str, float] = {"loss": loss, "learning_rate": share, "gradient_norm": float(norm)}
        row["tokens_per_s"] = num_learnt / (time.perf_counter() - started)
        is_last = step + 1 == settings.max_steps
        if held_out and ((step + 1) % settings.eval_every == 0 or is_last):
            row["held_out_loss"] = evaluate(model, held_out)
        progress.step(step + 1, row)
        if (step + 1) % settings.save_every == 0 or is_last:
            store(output / "checkpoints", step + 1, model, optimizers, data, keep=settings.keep_checkpoints)
    progress.finish()


def _accumulate(
    model: Transformer, data: PackedDocuments, settings: LoopSettings, shorter: int
) -> tuple[float, int]:
    """One step's gradients, as of the mean over all its learnt tokens; returns that mean and their number."""
    micro = (settings.micro_batch_size or settings.batch_size) * shorter
    rows = settings.batch_size * shorter
    batches = [
        data.next_batch(min(micro, rows - at), data.seq_length // shorter) for at in range(0, rows, micro)
    ]
    total = sum(batch.num_learnt for batch in batches)
    loss = 0.0
    for batch in batches:
        part = sum_loss(model, batch) / total
        part.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
        loss += float(part.detach())
    return loss, total


def sum_loss(model: Transformer, batch: Batch) -> Tensor:
    """Summed cross-entropy in nats over the learnt positions; no logits of the others are made."""
    device = model.embed.weight.device
    attend = documents(batch.lengths, model.config.sliding_window)
    hidden_BTD = model(batch.tokens_BT.to(device), batch.positions_BT.to(device), attend)
    labels = batch.labels_BT.to(device).flatten()
    is_learnt = labels != IGNORE
    hidden, labels = hidden_BTD.flatten(0, 1)[is_learnt], labels[is_learnt]
    losses = [
        F.cross_entropy(model.head(h).float(), y, reduction="sum")
        for h, y in zip(torch.split(hidden, _LOSS_ROWS), torch.split(labels, _LOSS_ROWS), strict=True)
    ]
    return torch.stack(losses).sum()


@torch.inference_mode()
def evaluate(model: Transformer, batches: Sequence[Batch]) -> float:
    """Mean loss in nats per learnt token over `batches`."""
    model.eval()
    total = sum(float(sum_loss(model, batch)) for batch in batches)
    model.train()
    return total / sum(batch.num_learnt for batch in batches)


def store(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    data: PackedDocuments,
    *,
    keep: int,
) -> None:
    """Write checkpoint `step` whole or not at all, then delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "position": asdict(data.position),
    }
    partial = folder / f"step-{step:08d}.pt.partial"
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(folder / f"step-{step:08d}.pt")
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()


def restore(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], data: PackedDocuments
) -> int:
    """Load the newest checkpoint of `folder` into all four; the number of steps done, 0 without one."""
    found = _checkpoints(folder)
    if not found:
        return 0
    try:
        state: dict[str, Any] = torch.load(found[-1], weights_only=True)
        model.load_state_dict(state["model"])
        for o, saved in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{found[-1]} does not fit this run: {str(error).splitlines()[0]}",
            "the recipe has changed since; use another --output to start anew",
        ) from None
    data.resume(
        Position(state["position"]["row"], tuple(Lane(**lane) for lane in state["position"]["lanes"]))
    )
    log.info("resumed at step %d", state["step"])
    return int(state["step"])


def _checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))
