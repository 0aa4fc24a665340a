"""Checkpoints in one file and in shares keep the same promises."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from starcoder.errors import CheckpointError
from starcoder.train.checkpoints import Checkpoints
from starcoder.train.distributed import Processes, ShardedCheckpoints

KINDS = ("file", "shares")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Checkpoints]:
    """Of each kind; the one of shares in a group of one process."""
    if request.param == "file":
        yield Checkpoints(tmp_path / "checkpoints")
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield ShardedCheckpoints(tmp_path / "checkpoints", Processes(0, 1, torch.device("cpu")))
    dist.destroy_process_group()


def learner(seed: int, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after one step; its first weights are frozen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_restored_goes_on_as_what_was_saved(store):
    model, optimizer = learner(0)
    other, its_optimizer = learner(1)
    other[0].load_state_dict(model[0].state_dict())  # frozen weights come from the base, not from here
    assert store.restore(other, [its_optimizer]) is None
    store.save(7, model, [optimizer], {"position": {"row": 3}})
    assert store.restore(other, [its_optimizer]) == {"step": 7, "position": {"row": 3}}
    assert same(model, other)
    step(model, optimizer)
    step(other, its_optimizer)
    assert same(model, other)


def test_the_newest_are_kept_and_the_best_apart(store):
    model, optimizer = learner(0)
    assert store.load_best(model) is None
    for number in (1, 2, 3, 10):
        store.save(number, model, [optimizer], {})
        store.save_best(number, 1 / number, model)
    kept = sorted(path.stem for path in store.folder.iterdir())
    assert kept == ["best", "step-00000003", "step-00000010"]
    other, its_optimizer = learner(1)
    assert store.restore(other, [its_optimizer]) == {"step": 10}
    assert store.load_best(other) == (10, 0.1)


def test_what_a_killed_process_left_half_written_is_not_restored(store):
    model, optimizer = learner(0)
    store.save(1, model, [optimizer], {})
    whole = next(store.folder.glob("step-*"))
    whole.with_name(whole.name.replace("1", "2") + ".partial").write_bytes(b"half")
    other, its_optimizer = learner(1)
    assert store.restore(other, [its_optimizer]) == {"step": 1}


def test_those_of_another_model_are_refused(store):
    model, optimizer = learner(0)
    store.save(1, model, [optimizer], {})
    store.save_best(1, 0.5, model)
    other, its_optimizer = learner(0, width=5)
    with pytest.raises(CheckpointError, match="does not fit this run"):
        store.restore(other, [its_optimizer])
    with pytest.raises(CheckpointError, match="does not fit this run"):
        store.load_best(other)


def test_those_of_other_optimizers_are_refused(store):
    model, optimizer = learner(0)
    store.save(1, model, [optimizer], {})
    with pytest.raises(CheckpointError, match="does not fit this run"):
        store.restore(model, [optimizer, torch.optim.SGD(model.parameters(), lr=1, momentum=0.5)])
