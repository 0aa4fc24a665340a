"""The runner: a scheduled step becomes tensors, one forward pass and the logits of the rows that sample.

The seam for faster execution: whatever offers `run` with this contract can replace it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.engine.cache import Cache
from starcoder.engine.scheduler import Segment
from starcoder.model import Transformer


@dataclass(frozen=True, slots=True)
class Logits:
    """What a step predicts of the next tokens."""

    values: Tensor  # (B, V)
    best: Sequence[int] | None = None  # the most likely token of each row, where the runner knows it

    def are_finite(self) -> list[bool]:
        """Whether each row holds numbers alone, and so says something."""
        found: list[bool] = torch.isfinite(self.values.amax(-1)).tolist()
        return found

    def of(self, rows: Sequence[int]) -> "Logits":
        """Of these rows; one may be wanted more than once."""
        if len(rows) == len(self.values) and all(row == at for at, row in enumerate(rows)):
            return self
        return Logits(self.values[rows], None if self.best is None else [self.best[row] for row in rows])


class Runner:
    """Runs steps of `model` over `cache`, on the model's device."""

    def __init__(self, model: Transformer, cache: Cache):
        self._model, self._cache = model, cache
        self._device = model.norm.weight.device

    @torch.inference_mode()
    def run(self, segments: Sequence[Segment], copies: Sequence[tuple[int, int]]) -> Logits:
        """Logits of each segment, in order, its last `num_rows` tokens.

        First carries out `copies` of blocks, then stores keys and values of the segments' tokens.
        """
        self._cache.copy(copies)
        tokens = [token for segment in segments for token in segment.tokens]
        positions = [at for segment in segments for at in range(segment.start, segment.end)]
        tokens_BT, positions_BT = torch.tensor([[tokens], [positions]], device=self._device)
        hidden_BTD = self._model(tokens_BT, positions_BT, self._cache.attend(segments))
        rows, hidden_TD = wanted_rows(segments), hidden_BTD[0]
        if len(rows) < hidden_TD.size(0):
            hidden_TD = hidden_TD[torch.tensor(rows, dtype=torch.long, device=self._device)]
        return Logits(self._model.head(hidden_TD))


def wanted_rows(segments: Sequence[Segment]) -> list[int]:
    """Which of the step's flat tokens logits are wanted of."""
    rows: list[int] = []
    end = 0
    for segment in segments:
        end += segment.end - segment.start
        rows += range(end - segment.num_rows, end)
    return rows
