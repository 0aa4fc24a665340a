"""Averaged weights follow the formula, survive a kill, and are what a run evaluates and leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from starcoder.train import loop
from starcoder.train.average import WeightAverage
from starcoder.train.checkpoints import trainable
from starcoder.train.progress import Progress
from starcoder.train.settings import OptimizerSettings
from tests.tiny import make_model
from tests.train.two_ranks import Stream

OPTIMIZER = OptimizerSettings(learning_rate=1e-2, muon_learning_rate=0.02, warmup_steps=1)


def test_an_average_is_the_published_sum_of_past_weights() -> None:
    model = make_model("bigcode")
    average = WeightAverage(model, decay=0.9)
    expected = model.norm.weight.detach().double().clone()
    for step in range(200):
        with torch.no_grad():
            model.norm.weight.fill_(float(step))
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied(model):
        assert torch.allclose(model.norm.weight.double(), expected, rtol=1e-5)
    assert model.norm.weight.tolist() == [199.0] * model.config.hidden_size


def run(output: Path, *, is_interrupted: bool = False):
    """Train a tiny model for nine steps, or for one."""
    model, progress = make_model("starcoder2"), Progress(output, Console(quiet=True))
    settings = loop.LoopSettings(max_steps=9, batch_size=2, save_every=3, eval_every=9, ema_decay=0.8)
    done = loop.train(
        model,
        Stream(),
        settings,
        OPTIMIZER,
        output,
        progress=progress,
        held_out=[Stream().next_batch(4)],
        should_stop=lambda: is_interrupted,
    )
    return model, done


def test_a_run_that_was_interrupted_leaves_the_same_averaged_weights(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    _, stopped = run(tmp_path / "stopped", is_interrupted=True)
    assert not stopped.is_complete
    resumed, _ = run(tmp_path / "stopped")
    for name, x in trainable(whole).items():
        assert torch.equal(x, trainable(resumed)[name]), name


def test_a_finished_run_leaves_the_averaged_weights_that_it_evaluated(tmp_path: Path) -> None:
    model, _ = run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n") if line]
    assert rows[-1]["held_out_loss"] == pytest.approx(
        loop.evaluate(model, [Stream().next_batch(4)]), abs=1e-5
    )
    last = torch.load(tmp_path / "checkpoints" / "step-00000009.pt")
    assert torch.equal(last["average"]["weights"]["norm.weight"], model.norm.weight)
    assert not torch.equal(last["model"]["norm.weight"], model.norm.weight)
