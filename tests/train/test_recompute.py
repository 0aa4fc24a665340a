"""What is made again for the backward pass changes no gradient, and is not kept."""

from contextlib import nullcontext

import pytest
import torch

from starcoder.adapters.settings import AdapterSettings
from starcoder.checkpoint.adapter import add_adapter
from starcoder.model import Transformer
from starcoder.train import losses
from starcoder.train.packing import Batch, stack
from starcoder.train.recompute import _Keeper, _Recipe, recompute
from tests.tiny import make_model

T = 48


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows = [[torch.randint(1, 320, (n,), generator=generator).tolist() for n in (20, 28)] for _ in range(2)]
    return stack(rows, T, 4)


def learning(variant: str, kind: str) -> Transformer:
    model = make_model(variant)
    model.is_recomputed = kind == "recomputed"
    if kind in ("full", "recomputed"):
        model.requires_grad_(True)
    else:
        adapter = add_adapter(model, AdapterSettings(rank=4, dropout=0.3 if kind == "dropout" else 0.0))
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model.train()


def gradients(model: Transformer, *, keeps_less: bool) -> list[torch.Tensor]:
    """Of two steps, so that memory is used again."""
    found = []
    with recompute(model) if keeps_less else nullcontext():
        for seed in (0, 1):
            model.zero_grad()
            torch.manual_seed(seed)
            losses.sum_loss(model, batch(seed)).backward()
            found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return found


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2", "starcoder2-exact-gelu"])
@pytest.mark.parametrize("kind", ["full", "lora", "dropout", "recomputed"])
def test_gradients_are_the_same_to_the_bit(variant: str, kind: str) -> None:
    model = learning(variant, kind)
    found, expected = gradients(model, keeps_less=True), gradients(model, keeps_less=False)
    assert len(expected) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_passes_before_one_backward_do_not_share_memory() -> None:
    model = learning("bigcode", "full")
    expected = gradients(model, keeps_less=False)
    model.zero_grad()
    with recompute(model):
        parts = [losses.sum_loss(model, batch(seed)) for seed in (0, 1)]
        torch.stack(parts).sum().backward()
    sums = [
        a + b for a, b in zip(expected[: len(expected) // 2], expected[len(expected) // 2 :], strict=True)
    ]
    found = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(found, sums, strict=True):
        torch.testing.assert_close(a, b)


def test_norms_and_inner_activations_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = learning("bigcode", "full"), list[object]()
    real = _Keeper.pack

    def spied(keeper: _Keeper, x: torch.Tensor) -> object:
        packed.append(real(keeper, x))
        return packed[-1]

    monkeypatch.setattr(_Keeper, "pack", spied)
    with recompute(model):
        losses.sum_loss(model, batch(0))
    config, tokens = model.config, batch(0).num_tokens
    made = {x.source.data_ptr(): x.shape.numel() for x in packed if isinstance(x, _Recipe)}
    per_token = config.num_layers * (2 * config.hidden_size + config.intermediate_size)
    assert sum(made.values()) == tokens * per_token


def test_hooks_are_gone_afterwards() -> None:
    model = learning("bigcode", "full")
    gradients(model, keeps_less=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
