"""Optimizers and learning-rate schedules.

Matrices inside blocks go to Muon (momentum made orthogonal), all else to AdamW: on the bundled model's
shape Muon reaches AdamW's loss in fewer tokens, which is what a CPU run is short of.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from starcoder.errors import ConfigError
from starcoder.model import Attention
from starcoder.train.settings import OptimizerSettings

WARMUP_SHARE = 0.03  # of all steps, where their number is not set


def rate_at(step: int, max_steps: int, settings: OptimizerSettings) -> float:
    """Share of the peak learning rate at `step` (0-based).

    Source: cosine, Loshchilov and Hutter 2017, arXiv:1608.03983; warm-up, stable, decay, Hu et al. 2024,
    arXiv:2404.06395.
    """
    warmup_steps = settings.warmup_steps
    if warmup_steps is None:
        warmup_steps = max(1, round(WARMUP_SHARE * max_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    floor = settings.final_share
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "wsd":
        left = max(0, max_steps - step) / max(1.0, max_steps * settings.decay_share)
        return floor + (1 - floor) * min(1.0, left)
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    if settings.schedule == "linear":
        return 1 - (1 - floor) * done
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized by five Newton-Schulz steps, in the parameter's own dtype.

    A group's `rows` are the heights of the matrices that each of its parameters stacks, such as the queries',
    keys' and values' projections in one `qkv`: each of them is orthogonalized alone. torch.optim.Muon
    computes in bfloat16, which CPUs without AMX emulate at a tenth of float32's speed.
    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "rows": None}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure: the loop never uses one
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                rows = group["rows"] or [p.size(0)]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                for target, part in zip(p.split(rows), update.split(rows), strict=True):
                    scale = max(1.0, part.size(0) / part.size(1)) ** 0.5
                    target.add_(orthogonalize(part), alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: all singular values between about 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.size(0) > matrix.size(1)
    x: Tensor = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = x.T if is_tall else x
    return out


def _adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigError("8-bit AdamW needs bitsandbytes", "pip install bitsandbytes") from None
    if not torch.cuda.is_available():
        raise ConfigError("8-bit AdamW needs a CUDA device", "leave --optimizer at adamw")
    made: torch.optim.Optimizer = AdamW8bit(groups, lr=settings.learning_rate, betas=settings.betas)
    return made


def build(model: nn.Module, settings: OptimizerSettings) -> list[torch.optim.Optimizer]:
    """Optimizers over `model`'s trainable parameters; each group keeps its peak rate in `peak_lr`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    use_muon = settings.muon_learning_rate is not None
    matrices = [p for name, p in named if use_muon and p.dim() == 2 and name.startswith("blocks.")]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers = [_adamw([g for g in groups if g["params"]], settings)]
    if settings.muon_learning_rate is not None and matrices:
        stacked = _stacked_rows(model)
        by_rows: dict[tuple[int, ...] | None, list[nn.Parameter]] = {}
        for p in matrices:
            by_rows.setdefault(stacked.get(id(p)), []).append(p)
        muon_groups: list[dict[str, Any]] = [
            {"params": params, "rows": None if rows is None else list(rows)}
            for rows, params in by_rows.items()
        ]
        optimizers.append(Muon(muon_groups, settings.muon_learning_rate, settings.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _stacked_rows(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Heights of the query, key and value matrices in each fused projection, by the parameter's id."""
    found: dict[int, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, Attention):
            config = module.config
            N, K, H = config.num_heads, config.num_kv_heads, config.head_size
            found[id(module.qkv.weight)] = (N * H, K * H, K * H)
    return found
