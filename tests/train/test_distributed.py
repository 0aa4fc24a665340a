"""Several processes learn what one does, hold their share, and go on in another number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from starcoder import checkpoint
from starcoder.adapters.settings import AdapterSettings
from starcoder.errors import ConfigError
from starcoder.train import distributed
from starcoder.train.loop import LoopSettings, evaluate, train
from starcoder.train.progress import Progress
from tests.tiny import make_checkpoint
from tests.train.test_loop import RECIPE
from tests.train.two_ranks import LOOP, OPTIMIZER, Stream

SCRIPT = Path(__file__).with_name("two_ranks.py")
STEPS = 5


def launch(ranks: int, **asked) -> dict:
    """Run the script under torchrun; its report."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)),
            *(str(SCRIPT), json.dumps({"sharding": "full", "offload": False, "steps": STEPS} | asked)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((Path(asked["output"]) / "report.json").read_text())


def alone(folder: Path, output: Path, method: str, steps: int = STEPS):
    """The same training in this process, without any sharding."""
    model = checkpoint.load(folder)
    adapter = None
    if method == "lora":
        adapter = checkpoint.add_adapter(model, AdapterSettings(rank=4))
    else:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        model.requires_grad_(True)
    train(
        model,
        Stream(),
        LoopSettings(max_steps=steps, **LOOP),
        OPTIMIZER,
        output,
        progress=Progress(output, Console(quiet=True)),
    )
    return model, adapter, evaluate(model, [Stream().next_batch(8)])


def assert_close(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name.endswith("qkv.bias"):
            continue  # a bias of keys has no gradient but rounding, and AdamW makes whole steps of that
        # Sums in another order, through five steps of an optimizer that divides by small numbers.
        torch.testing.assert_close(
            found[name], x, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize(
    ("variant", "method", "sharding", "offload"),
    [
        ("bigcode", "full", "full", False),
        pytest.param("starcoder2", "lora", "full", False, marks=pytest.mark.slow),
        ("starcoder2-untied", "full", "none", False),
        ("bigcode-multi-head", "lora", "full", True),
    ],
)
def test_two_processes_equal_one(tmp_path, variant, method, sharding, offload):
    base = make_checkpoint(variant, tmp_path / "base")
    model, adapter, loss = alone(base, tmp_path / "one", method)
    report = launch(
        2,
        model=str(base),
        output=str(tmp_path / "two"),
        method=method,
        sharding=sharding,
        offload=offload,
    )

    assert report["loss"] == pytest.approx(loss, rel=1e-4)
    share = 1 if sharding == "none" else 2
    total = sum(p.numel() for p in model.parameters())
    assert report["held"] == pytest.approx(total / share, rel=0.02)
    if adapter is not None:
        assert_close(torch.load(tmp_path / "two" / "adapter.pt"), adapter.state())
    else:
        assert_close(checkpoint.load(tmp_path / "two" / "model").state_dict(), model.state_dict())


def test_another_number_of_processes_goes_on_as_if_nothing_had_happened(tmp_path):
    base = make_checkpoint("bigcode", tmp_path / "base")
    asked = {"model": str(base), "method": "full"}
    model, _, loss = alone(base, tmp_path / "one", "full", steps=6)
    launch(2, **asked, output=str(tmp_path / "several"), steps=3)
    report = launch(1, **asked, output=str(tmp_path / "several"), steps=6)

    assert report["size"] == 1
    assert report["loss"] == pytest.approx(loss, rel=1e-4)
    assert_close(checkpoint.load(tmp_path / "several" / "model").state_dict(), model.state_dict())
    kept = sorted(path.name for path in (tmp_path / "several" / "checkpoints").iterdir())
    assert kept == ["best", "step-00000003", "step-00000006"]


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path):
    group = distributed.Processes(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match="not one of several"), distributed.processes("cpu"):
        pass
    with pytest.raises(ConfigError, match="are not sharded"):
        distributed.build(tmp_path, group, adapter=AdapterSettings(), quantize="int8")
    with pytest.raises(ConfigError, match="do not learn"):
        distributed.build(tmp_path, group, quantize="int8", sharding="none")


@pytest.mark.slow
def test_two_processes_pretrain_the_model_that_one_does(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        RECIPE.replace("batch_size = 2", "batch_size = 4").replace("max_steps = 30", "max_steps = 4")
        + "muon_learning_rate = 0.02\n"
    )
    (tmp_path / "data.jsonl").write_text("".join(f'{{"content": "x = {i}\\n"}}\n' for i in range(99)))
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start in (("one", []), ("two", launcher)):
        command = [sys.executable, *start, "-m", "starcoder", "pretrain", "recipe.toml", "--output", name]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"{name}/model" in done.stdout
    one, two = (checkpoint.load(tmp_path / name / "model") for name in ("one", "two"))
    for (name, x), y in zip(one.named_parameters(), two.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-5), name
