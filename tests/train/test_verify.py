"""The packing check passes for every variant of both families, and fails where documents see one another."""

import pytest
import torch

from starcoder.adapters.settings import AdapterSettings
from starcoder.checkpoint.adapter import add_adapter
from starcoder.model import causal
from starcoder.train import losses, verify
from starcoder.train.packing import Batch, stack
from starcoder.train.verify import verify_packing
from tests.tiny import VARIANTS, make_model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randint(20, 320, (n,), generator=generator).tolist() for n in (30, 7, 20, 12)]
    learned = [[n % 3 > 0 for n in range(len(piece))] for piece in pieces]
    return stack([pieces[:2], pieces[2:]], 40, 0, [learned[:2], learned[2:]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_separate(variant: str) -> None:
    model = make_model(variant).train()
    report = verify_packing(model, batch())
    assert report.is_equal, report
    assert (report.num_documents, report.num_tokens) == (4, 65)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_packed_equals_separate_with_an_adapter_and_activations_computed_again() -> None:
    model = make_model("starcoder2-window")
    add_adapter(model, AdapterSettings(dropout=0.5))
    model.is_recomputed = True
    assert verify_packing(model, batch()).is_equal


def test_documents_that_see_one_another_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (losses, verify):
        monkeypatch.setattr(module, "documents", lambda lengths, window: causal(window))
    report = verify_packing(make_model("bigcode"), batch())
    assert not report.is_equal
    assert report.logits > 1e-2
    assert report.gradients > 1e-2
