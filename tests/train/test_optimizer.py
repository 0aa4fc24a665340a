"""Schedules have the shape their names say; Muon makes orthogonal updates and learns."""

import pytest
import torch
from torch import nn

from starcoder.train.optimizer import Muon, build, orthogonalize, rate_at
from starcoder.train.settings import OptimizerSettings, Schedule
from tests.tiny import make_model


def test_every_schedule_warms_up_and_stays_within_its_peak() -> None:
    for schedule in ("cosine", "wsd", "linear", "constant"):
        settings = OptimizerSettings(schedule=schedule, warmup_steps=10)
        rates = [rate_at(step, 100, settings) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert rates[9] == pytest.approx(1.0)
        assert max(rates) <= 1.0
        assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "half"), [("cosine", 0.5), ("linear", 0.5), ("wsd", 1.0), ("constant", 1.0)]
)
def test_half_way_rates(schedule: Schedule, half: float) -> None:
    settings = OptimizerSettings(schedule=schedule, warmup_steps=0, decay_share=0.3)
    assert rate_at(500, 1000, settings) == pytest.approx(half)


def test_wsd_decays_over_its_share_down_to_the_floor() -> None:
    settings = OptimizerSettings(schedule="wsd", warmup_steps=0, decay_share=0.2, final_share=0.1)
    assert rate_at(800, 1000, settings) == pytest.approx(1.0)
    assert rate_at(900, 1000, settings) == pytest.approx(0.55)
    assert rate_at(1000, 1000, settings) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert float(values.max()) < 1.3
    assert float(values.min()) > 0.3


def test_muon_gets_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = nn.Module()
    model.embed = nn.Embedding(10, 4)
    model.blocks = nn.ModuleList([nn.Linear(4, 4)])
    adamw, muon = build(model, OptimizerSettings(muon_learning_rate=0.02))
    assert isinstance(muon, Muon)
    assert muon.param_groups[0]["params"] == [model.blocks[0].weight]
    decayed = {id(p): g["weight_decay"] > 0 for g in adamw.param_groups for p in g["params"]}
    assert decayed == {id(model.embed.weight): True, id(model.blocks[0].bias): False}


def test_muon_orthogonalizes_queries_keys_and_values_each_alone() -> None:
    """As it would update three matrices of their own, with each one's own scale."""
    model = make_model("starcoder2")
    qkv = model.blocks[0].attention.qkv.weight
    heads, H = model.config.num_heads, model.config.head_size
    rows = [heads * H, model.config.num_kv_heads * H, model.config.num_kv_heads * H]
    parts = [nn.Parameter(part.detach().clone()) for part in qkv.split(rows)]
    separate = Muon(parts, lr=0.1, weight_decay=0.1)
    _, muon = build(model, OptimizerSettings(learning_rate=0, muon_learning_rate=0.1))
    for step in range(3):
        qkv.grad = torch.randn(qkv.shape, generator=torch.Generator().manual_seed(step))
        for part, grad in zip(parts, qkv.grad.split(rows), strict=True):
            part.grad = grad.clone()
        muon.step()
        separate.step()
    assert torch.equal(torch.cat(list(parts)), qkv)
    whole = nn.Parameter(qkv.detach().clone())
    whole.grad = qkv.grad
    Muon([whole], lr=0.1, weight_decay=0.1).step()
    muon.step()
    assert not torch.allclose(whole, qkv, atol=1e-3)


def test_muon_finds_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    target, x = torch.randn(8, 8, generator=generator), torch.randn(64, 8, generator=generator)
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    losses = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = (x @ weight.T - x @ target.T).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 1e-2 * losses[0]
