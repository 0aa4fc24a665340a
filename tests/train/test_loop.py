"""The loop learns, resumes bit for bit, and packs without leaking across documents."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from starcoder.config import ModelConfig
from starcoder.errors import CapacityError, CheckpointError, StarcoderError
from starcoder.model import Transformer, causal
from starcoder.tokenizer import Tokenizer
from starcoder.train import loop, losses
from starcoder.train.checkpoints import Checkpoints
from starcoder.train.packing import Batch, PackedDocuments, stack
from starcoder.train.progress import Progress, read_metrics
from starcoder.train.settings import FimSettings, OptimizerSettings
from tests.tiny import make_tokenizer

TEXTS = [f"def add_{i}(first, second):\n    return first + second + {i}\n" for i in range(50)]
OPTIMIZER = OptimizerSettings(learning_rate=3e-3, muon_learning_rate=0.02, warmup_steps=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def tiny(family: str = "starcoder2", window: int | None = None) -> Transformer:
    config = ModelConfig(
        family="starcoder2" if family == "starcoder2" else "gpt_bigcode",
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        max_positions=128,
        rope_theta=1e4 if family == "starcoder2" else None,
        sliding_window=window,
    )
    model = Transformer(config)
    model.initialize(torch.Generator().manual_seed(1), std=0.1)
    return model


def data(tokenizer: Tokenizer) -> PackedDocuments:
    return PackedDocuments(TEXTS, tokenizer, seq_length=64, fim=FimSettings(), seed=3)


def fit(tokenizer: Tokenizer, output: Path, steps: int, *, stop_at: int | None = None) -> Transformer:
    """Train for `steps`; with `stop_at` the run breaks off there, as a kill between steps would."""
    model, settings = tiny(), loop.LoopSettings(max_steps=steps, batch_size=2, save_every=4, eval_every=5)
    progress = Progress(output, Console(quiet=True))
    if stop_at is not None:
        step = progress.step

        def breaking(number: int, row: dict[str, float]) -> None:
            step(number, row)
            if number == stop_at:
                raise KeyboardInterrupt

        progress.step = breaking  # type: ignore[method-assign]
    held_out = [data(tokenizer).next_batch(2)]
    loop.train(model, data(tokenizer), settings, OPTIMIZER, output, held_out=held_out, progress=progress)
    return model


def test_loss_falls_and_metrics_and_plot_are_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fit(tokenizer, tmp_path, 40)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert [row["step"] for row in rows if "held_out_loss" in row] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_broken_off_and_resumed_equals_an_uninterrupted_one(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = fit(tokenizer, tmp_path / "whole", 14)
    with pytest.raises(KeyboardInterrupt):
        fit(tokenizer, tmp_path / "broken", 14, stop_at=10)  # the newest checkpoint is of step 8
    resumed = fit(tokenizer, tmp_path / "broken", 14)
    for expected, actual in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)
    seen = [
        [row["loss"] for row in read_metrics(tmp_path / x / "metrics.jsonl")] for x in ("whole", "broken")
    ]
    assert seen[0] == seen[1]


def gradients_of(model: Transformer, batch: Batch, micro: int) -> None:
    settings = loop.LoopSettings(max_steps=1, batch_size=len(batch.lengths))
    run = loop._Run(model, None, settings, OPTIMIZER, Checkpoints(Path()), loop.sum_loss, loop.Alone())  # type: ignore[arg-type]
    run._gradients(batch, 0, micro)


def test_micro_batches_give_the_gradients_of_the_whole_batch(tokenizer: Tokenizer) -> None:
    gradients = []
    for micro in (None, 1, 3):
        model = tiny()
        gradients_of(model, data(tokenizer).next_batch(4), micro or 4)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)  # summation order
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "window"), [("gpt_bigcode", None), ("starcoder2", None), ("starcoder2", 9)]
)
def test_packed_loss_and_gradients_equal_separate_documents(family: str, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randint(20, 320, (n,), generator=generator).tolist() for n in (30, 7, 20)]
    packed, apart = tiny(family, window), tiny(family, window)
    packed_loss = loop.sum_loss(packed, stack([pieces[:2], pieces[2:]], 40, pad=0))
    packed_loss.backward()
    apart_loss = torch.zeros(())
    for piece in pieces:
        ids = torch.tensor([piece])
        hidden = apart(ids[:, :-1], torch.arange(ids.size(1) - 1)[None], causal(window))
        apart_loss = apart_loss + F.cross_entropy(apart.head(hidden)[0], ids[0, 1:], reduction="sum")
    apart_loss.backward()
    torch.testing.assert_close(packed_loss, apart_loss, rtol=1e-5, atol=1e-5)
    for one, other in zip(packed.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    settings = loop.LoopSettings(max_steps=3, batch_size=1)
    with pytest.raises(StarcoderError, match="loss is nan"):
        loop.train(
            model,
            data(tokenizer),
            settings,
            OPTIMIZER,
            tmp_path,
            progress=Progress(tmp_path, Console(quiet=True)),
        )
    assert not list(tmp_path.glob("checkpoints/*.pt"))
    report = json.loads((tmp_path / "failure.json").read_text())
    assert report["step"] == 1
    assert report["not_finite"]["weights"] == ["norm.weight"]
    assert len(report["tokens"][0]) == 64


def test_another_model_does_not_resume_from_these_checkpoints(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fit(tokenizer, tmp_path, 4)
    other = tiny("gpt_bigcode")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        Checkpoints(tmp_path / "checkpoints").restore(other, [])


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_no_gradient(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def greedy(model: Transformer, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.lengths))
        if len(batch.lengths) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loop.sum_loss(model, batch)

    seen = {}
    for name, loss in (("greedy", greedy), ("plain", loop.sum_loss)):
        settings = loop.LoopSettings(max_steps=2, batch_size=4, save_every=1)
        progress = Progress(tmp_path / name, Console(quiet=True))
        loop.train(
            tiny(), data(tokenizer), settings, OPTIMIZER, tmp_path / name, loss=loss, progress=progress
        )
        seen[name] = [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert seen["greedy"] == pytest.approx(seen["plain"], rel=1e-4)
    assert "1 rows at a time from here on, not 2" in caplog.text


def test_memory_too_small_for_one_row_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def hungry(model: Transformer, batch: Batch) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    settings, progress = loop.LoopSettings(max_steps=2, batch_size=2), Progress(tmp_path, Console(quiet=True))
    with pytest.raises(CapacityError, match="one row of 64 tokens"):
        loop.train(tiny(), data(tokenizer), settings, OPTIMIZER, tmp_path, loss=hungry, progress=progress)


def test_a_run_told_to_stop_saves_and_goes_on_to_the_same_weights(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = fit(tokenizer, tmp_path / "whole", 6)
    model, settings = tiny(), loop.LoopSettings(max_steps=6, batch_size=2, save_every=100)
    asked = iter([False, False, True])
    progress = Progress(tmp_path / "s", Console(quiet=True))
    stopped = loop.train(
        model,
        data(tokenizer),
        settings,
        OPTIMIZER,
        tmp_path / "s",
        progress=progress,
        should_stop=lambda: next(asked),
    )
    assert (stopped.step, stopped.is_complete) == (3, False)
    model = tiny()
    loop.train(model, data(tokenizer), settings, OPTIMIZER, tmp_path / "s", progress=progress)
    for expected, actual in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_the_best_weights_are_kept_and_only_the_newest_checkpoints(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    settings = loop.LoopSettings(
        max_steps=8, batch_size=2, save_every=1, eval_every=1, keep_checkpoints=3, keep_best=True
    )
    model, held_out = tiny(), [data(tokenizer).next_batch(2)]
    progress = Progress(tmp_path, Console(quiet=True))
    outcome = loop.train(
        model, data(tokenizer), settings, OPTIMIZER, tmp_path, held_out=held_out, progress=progress
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    best = min(rows, key=lambda row: row["held_out_loss"])
    assert outcome.best is not None
    assert outcome.best == (best["step"], pytest.approx(best["held_out_loss"], abs=1e-6))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "step-00000006.pt", "step-00000007.pt", "step-00000008.pt"]
    other = tiny()
    assert Checkpoints(tmp_path / "checkpoints").load_best(other) == outcome.best
    assert loop.evaluate(other, held_out) == pytest.approx(best["held_out_loss"], abs=1e-6)


def test_the_heads_own_loss_equals_torchs_with_its_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden = torch.randn(1100, 16, generator=generator, requires_grad=True)
    labels = torch.randint(0, 50, (1100,), generator=generator)
    losses.head_loss(head, hidden, labels).mul(0.5).backward()
    ours = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None
    F.cross_entropy(head(hidden), labels, reduction="sum").mul(0.5).backward()
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], head.weight.grad, rtol=1e-5, atol=1e-4)


def test_frozen_weights_are_not_in_a_checkpoint(tmp_path: Path) -> None:
    model = tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("norm.weight"))
    Checkpoints(tmp_path).save(1, model, [], {})
    assert list(torch.load(tmp_path / "step-00000001.pt")["model"]) == ["norm.weight"]


RECIPE = """
output = "unset"
threads = 1
[data]
train = "data.jsonl"
held_out = "data.jsonl"
held_out_tokens = 128
seq_length = 64
[model]
family = "gpt_bigcode"
vocab_size = 300
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
num_kv_heads = 1
max_positions = 64
[training]
max_steps = 30
batch_size = 2
save_every = 1
[optimizer]
warmup_steps = 2
"""


def test_a_run_killed_by_sigkill_resumes_to_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "data.jsonl").write_text("".join(f'{{"content": "x = {i}\\n"}}\n' for i in range(99)))

    def start(output: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "starcoder", "pretrain", "recipe.toml", "--output", output]
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    whole = start("whole")
    assert whole.communicate()[0].decode().strip() == "whole/model"
    killed, folder = start("killed"), tmp_path / "killed" / "checkpoints"
    while killed.poll() is None and not (folder.exists() and len(list(folder.glob("step-*.pt"))) >= 2):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it was killed before its end"
    assert start("killed").communicate()[0].decode().strip() == "killed/model"
    weights = [(tmp_path / x / "model" / "model.safetensors").read_bytes() for x in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_gradients_are_scaled_down_to_the_norm(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What the optimizer sees after the last step is still in the gradients."""
    model, settings = tiny(), loop.LoopSettings(max_steps=1, batch_size=2)
    clipped = OptimizerSettings(learning_rate=1e-3, clip_norm=0.01)
    progress = Progress(tmp_path, Console(quiet=True))
    loop.train(model, data(tokenizer), settings, clipped, tmp_path, progress=progress)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert float(torch.nn.utils.get_total_norm(gradients)) == pytest.approx(0.01, rel=1e-3)
    [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert row["gradient_norm"] > 0.1, "the norm that is recorded is the one before"
