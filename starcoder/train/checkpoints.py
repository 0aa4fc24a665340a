"""What a run keeps on disk to go on from: weights that learn, optimizers, the position in the data.

A checkpoint appears by rename, so that there are only whole ones. Rotation keeps the newest few; the best by
held-out loss stands apart, weights only.
"""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starcoder.errors import CheckpointError

log = logging.getLogger(__name__)

BEST = "best.pt"


class Checkpoints:
    """The checkpoints of one run, in one folder. Frozen weights are not in them: the base has those."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder, self.keep = folder, keep

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        extra: dict[str, Any],
    ) -> None:
        """Write checkpoint `step` whole or not at all, then delete all but the newest `keep`."""
        state = {"step": step, "model": trainable(model), "optimizers": [o.state_dict() for o in optimizers]}
        _write(self.folder / f"step-{step:08d}.pt", state | extra)
        for old in self._numbered()[: -self.keep]:
            old.unlink()

    def restore(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any] | None:
        """Load the newest checkpoint into both; all that it holds, or None where there is none.

        Raises:
            CheckpointError: it is of another model or optimizer.
        """
        found = self._numbered()
        if not found:
            return None
        try:
            state: dict[str, Any] = torch.load(found[-1], weights_only=True)
            load_trainable(model, state["model"])
            for o, saved in zip(optimizers, state["optimizers"], strict=True):
                o.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CheckpointError(
                f"{found[-1]} does not fit this run: {str(error).splitlines()[0]}",
                "the recipe has changed since; use another --output to start anew",
            ) from None
        log.info("resumed at step %d", state["step"])
        return state

    def save_best(self, step: int, loss: float, model: nn.Module) -> None:
        """Keep these weights as the best of the run, in place of those kept before."""
        _write(self.folder / BEST, {"step": step, "held_out_loss": loss, "model": trainable(model)})

    def load_best(self, model: nn.Module) -> tuple[int, float] | None:
        """Give `model` the best weights of the run; their step and held-out loss, None without."""
        path = self.folder / BEST
        if not path.exists():
            return None
        state = torch.load(path, weights_only=True)
        load_trainable(model, state["model"])
        return int(state["step"]), float(state["held_out_loss"])

    def _numbered(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name, not copied."""
    return {name: x.detach() for name, x in model.state_dict(keep_vars=True).items() if x.requires_grad}


def load_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy what `trainable` gave into `model`.

    Raises:
        RuntimeError: names or shapes differ.
    """
    expected = trainable(model)
    if expected.keys() != state.keys():
        raise RuntimeError(f"weights {sorted(expected.keys() ^ state.keys())[:3]} are in one of them only")
    model.load_state_dict(state, strict=False)


def _write(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
