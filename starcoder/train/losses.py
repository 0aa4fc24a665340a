"""The next-token loss over the positions that are learned, without ever holding all logits.

Logits of `_ROWS` positions exist at once, and their gradient is made where they lie, in the forward pass:
a vocabulary of 49k columns costs its two (or three) matrix products and little else.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from starcoder.model import Transformer, documents
from starcoder.train.packing import IGNORE, Batch

_ROWS = 512  # fewer make the products slower (512: 87 GFLOP/s a core here, 64: 57); more cost 100 KB each
_SOFTMAX_ROWS = 64  # of those, for which a second copy exists


def sum_loss(model: Transformer, batch: Batch) -> Tensor:
    """Summed cross-entropy in nats over the learned positions; no logits of the others are made."""
    batch = batch.flat()
    device = model.norm.weight.device
    attend = documents(batch.lengths, model.config.sliding_window)
    hidden_BTD = model(batch.tokens_BT.to(device), batch.positions_BT.to(device), attend)
    labels = batch.labels_BT.flatten()
    learned = (labels != IGNORE).nonzero().squeeze(1)
    hidden = hidden_BTD.flatten(0, 1)[learned.to(device)]
    return head_loss(model.head, hidden, labels[learned].to(device))


def head_loss(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in nats of `head(hidden)` (n, V) against `labels` (n,)."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    if type(head) is nn.Linear and head.bias is None and torch.is_grad_enabled():
        loss: Tensor = _HeadLoss.apply(hidden, head.weight, labels)
        return loss

    def part(h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), y, reduction="sum")

    parts = zip(torch.split(hidden, _ROWS), torch.split(labels, _ROWS), strict=True)
    # Another kind of head, such as a rounded one: its logits are made again for the gradient.
    losses = [checkpoint(part, h, y, use_reentrant=False) for h, y in parts]
    return torch.stack(losses).sum()


def _to_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """Turn `logits` (n, V) into the gradient of their summed cross-entropy with `labels` (n,); that sum."""
    total = torch.zeros((), device=logits.device)
    parts = (torch.split(x, _SOFTMAX_ROWS) for x in (logits, labels))
    for part, chosen in zip(*parts, strict=True):
        logprobs, at = F.log_softmax(part, dim=-1), chosen[:, None]
        total -= logprobs.gather(1, at).sum()
        torch.exp(logprobs, out=part)
        part.scatter_add_(1, at, torch.full_like(at, -1, dtype=part.dtype))
        del logprobs  # before the next ones are made
    return total


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to float32 `total`, in its place where that can be."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_((left @ right).float())


class _HeadLoss(torch.autograd.Function):
    """Product with the head's weight and cross-entropy in one. Gradient of softmax: p - onehot."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        weight = weight.to(hidden.dtype)
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, hidden.size(0), _ROWS):
            part = slice(start, start + _ROWS)
            grad = (hidden[part] @ weight.T).float()
            total += _to_gradient(grad, labels[part])
            grad = grad.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(grad, weight, out=hidden_grad[part])
            if weight_grad is not None:
                _add_product(weight_grad, grad.T, hidden[part])
            del grad  # no name may hold it: the next logits are made where it lay
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        (scale,) = grads
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad.mul_(scale),  # once: a copy is of the head's size
            None,
        )
