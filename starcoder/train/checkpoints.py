"""What a run keeps on disk to go on from: weights that learn, optimizers, the position in the data.

A checkpoint appears by rename, so that there are only whole ones. Rotation keeps the newest few; the best by
held-out loss stands apart, weights only.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starcoder.errors import CheckpointError
from starcoder.files import replace_atomically

log = logging.getLogger(__name__)

_NUMBERED = "step-" + "[0-9]" * 8

Optimizers = Sequence[torch.optim.Optimizer]


class Checkpoints:
    """The checkpoints of one run, in one folder. Frozen weights are not in them: the base has those."""

    def __init__(self, folder: Path, *, keep: int = 2):
        self.folder, self.keep = folder, keep

    def save(self, step: int, model: nn.Module, optimizers: Optimizers, extra: dict[str, Any]) -> None:
        """Write checkpoint `step` whole or not at all, then delete all but the newest `keep`."""
        self._write(self._path(f"step-{step:08d}"), model, optimizers, {"step": step} | extra)
        self._rotate()

    def restore(self, model: nn.Module, optimizers: Optimizers) -> dict[str, Any] | None:
        """Load the newest checkpoint into both; its step and `extra` as given to `save`, or None without.

        Raises:
            CheckpointError: it is of another model or optimizer.
        """
        found = self._numbered()
        if not found:
            return None
        extra = self._fitting(found[-1], model, optimizers)
        log.info("resumed at step %d", extra["step"])
        return extra

    def save_best(self, step: int, loss: float, model: nn.Module) -> None:
        """Keep these weights as the best of the run, in place of those kept before."""
        self._write(self._path("best"), model, (), {"step": step, "held_out_loss": loss})

    def load_best(self, model: nn.Module) -> tuple[int, float] | None:
        """Give `model` the best weights of the run; their step and held-out loss, None without.

        Raises:
            CheckpointError: they are of another model.
        """
        path = self._path("best")
        if not path.exists():
            return None
        extra = self._fitting(path, model, ())
        return int(extra["step"]), float(extra["held_out_loss"])

    def _fitting(self, path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
        try:
            return self._read(path, model, optimizers)
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise CheckpointError(
                f"'{path}' does not fit this run: {str(error).splitlines()[0]}",
                "the recipe has changed since; use another --output to start anew",
            ) from None

    def _rotate(self) -> None:
        for old in self._numbered()[: -self.keep]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()

    def _numbered(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(self.folder.glob(self._path(_NUMBERED).name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def _write(self, path: Path, model: nn.Module, optimizers: Optimizers, extra: dict[str, Any]) -> None:
        state = {"model": trainable(model), "optimizers": [o.state_dict() for o in optimizers]}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(path) as part:
            torch.save(state | extra, part)

    def _read(self, path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
        """Load both from the file; what `_write` was given as `extra`."""
        extra: dict[str, Any] = torch.load(path, weights_only=True)
        load_trainable(model, extra.pop("model"))
        for optimizer, saved in zip(optimizers, extra.pop("optimizers"), strict=True):
            optimizer.load_state_dict(saved)
        return extra


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
