"""An exponential moving average of the trainable weights: smoother than a constant learning rate leaves them.

Source: Polyak averaging; with warm-up as `torch.optim.swa_utils` and TensorFlow's `ExponentialMovingAverage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from starcoder.train.checkpoints import load_trainable, trainable


class WeightAverage:
    """Follows `model`: after every step each averaged weight moves `1 - decay` of the way to the current one.

    In the first steps the share is larger, `decay = (1 + steps) / (10 + steps)`, to forget the start.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.num_steps = decay, 0
        self._weights = {name: x.clone() for name, x in trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        self.num_steps += 1
        for name, x in trainable(model).items():
            self._weights[name].lerp_(x, 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` has the averaged weights; afterwards its own again."""
        own = {name: x.clone() for name, x in trainable(model).items()}
        self.copy_to(model)
        try:
            yield
        finally:
            load_trainable(model, own)

    def copy_to(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        load_trainable(model, self._weights)

    def state(self) -> dict[str, int | dict[str, Tensor]]:
        return {"num_steps": self.num_steps, "weights": self._weights}

    def restore(self, state: dict[str, int | dict[str, Tensor]]) -> None:
        """Continue from a `state`, of the same model."""
        num_steps, weights = state["num_steps"], state["weights"]
        assert isinstance(num_steps, int) and isinstance(weights, dict), "as `state` gives them"
        self.num_steps = num_steps
        for name, x in weights.items():
            self._weights[name].copy_(x)
