"""Checks on a model and its data that packing changes nothing: packed against one document at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.model import Transformer, causal, documents
from starcoder.train.losses import sum_loss
from starcoder.train.packing import IGNORE, Batch

TOLERANCE = 1e-5  # of the largest value; float32 sums in another order differ by a few 1e-7


@dataclass(frozen=True, slots=True)
class PackingReport:
    """Largest differences between packed and separate, as shares of the largest value."""

    num_documents: int
    num_tokens: int
    logits: float
    gradients: float

    @property
    def is_equal(self) -> bool:
        return self.logits <= TOLERANCE and self.gradients <= TOLERANCE


def verify_packing(model: Transformer, batch: Batch) -> PackingReport:
    """Compare logits and gradients of the loss, dropout off; leaves no gradients behind."""
    was_training = model.training
    model.eval()
    batch, device = batch.flat(), model.norm.weight.device
    tokens, labels = batch.tokens_BT.to(device), batch.labels_BT.to(device)
    lengths = list(batch.lengths[0])
    with torch.no_grad():
        attend = documents(batch.lengths, model.config.sliding_window)
        packed = model.head(model(tokens, batch.positions_BT.to(device), attend))[0]
        separate = torch.cat([_alone(model, ids) for ids in torch.split(tokens, lengths, dim=1)])
    sum_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    together = _take_gradients(model)
    for ids, wanted in zip(torch.split(tokens, lengths, 1), torch.split(labels[0], lengths), strict=True):
        if bool((wanted != IGNORE).any()):
            loss = torch.nn.functional.cross_entropy(
                _alone(model, ids).float(), wanted, ignore_index=IGNORE, reduction="sum"
            )
            loss.backward()  # type: ignore[no-untyped-call]
    apart = _take_gradients(model)
    model.train(was_training)
    return PackingReport(
        len(lengths), tokens.numel(), _difference([packed], [separate]), _difference(together, apart)
    )


def _alone(model: Transformer, ids_1T: Tensor) -> Tensor:
    positions = torch.arange(ids_1T.size(1), device=ids_1T.device)[None]
    logits: Tensor = model.head(model(ids_1T, positions, causal(model.config.sliding_window)))[0]
    return logits


def _take_gradients(model: Transformer) -> list[Tensor]:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return gradients


def _difference(ones: list[Tensor], others: list[Tensor]) -> float:
    largest = max((float(x.abs().max()) for x in others), default=0.0)
    worst = max((float((a - b).abs().max()) for a, b in zip(ones, others, strict=True)), default=0.0)
    return worst / largest if largest else worst
