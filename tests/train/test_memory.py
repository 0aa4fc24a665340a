"""The planner of fine-tuning: its parts are the real ones, and a measured step peaks at what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import starcoder
from starcoder.adapters.settings import AdapterSettings
from starcoder.checkpoint.adapter import add_adapter
from starcoder.cli import main
from starcoder.config import ModelConfig
from starcoder.model import Transformer
from starcoder.plan import KNOWN
from starcoder.quantize import quantize
from starcoder.train import loop
from starcoder.train.losses import sum_loss
from starcoder.train.memory import (
    Method,
    Setup,
    adapter_parameters,
    fitting,
    longest_seq_length,
    plan_finetune,
    ways,
)
from starcoder.train.packing import stack
from starcoder.train.recompute import recompute
from tests.tiny import VARIANTS, make_model
from tests.train.live_bytes import LiveBytes

GB = 10**9
PACKAGE = Path(starcoder.__file__).parent
STARCODER = KNOWN["bigcode/starcoder"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapters_parameters_are_counted_exactly(variant: str) -> None:
    adapter = add_adapter(make_model(variant), AdapterSettings(rank=4))
    counted = adapter_parameters(ModelConfig.from_hf(VARIANTS[variant]), 4)
    assert counted == sum(p.numel() for p in adapter.parameters())


def test_shares_divide_and_recomputing_saves_activations() -> None:
    alone = plan_finetune(STARCODER, Setup(method="full"))
    shared = plan_finetune(STARCODER, Setup(method="full", devices=8, sharding="full"))
    again = plan_finetune(STARCODER, Setup(method="full", recomputes=True))
    assert shared.weight_bytes == alone.weight_bytes // 8
    assert shared.optimizer_bytes == alone.optimizer_bytes // 8 == 8 * STARCODER.num_parameters // 8
    assert shared.gathered_bytes > 0 == alone.gathered_bytes
    assert again.activation_bytes < alone.activation_bytes / 5


def shape(family: str, hidden_size: int, num_layers: int, vocab_size: int) -> ModelConfig:
    is_starcoder2 = family == "starcoder2"
    return ModelConfig(
        family="starcoder2" if is_starcoder2 else "gpt_bigcode",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=num_layers,
        num_heads=hidden_size // 64,
        num_kv_heads=2 if is_starcoder2 else 1,
        max_positions=2048,
        rope_theta=1e5 if is_starcoder2 else None,
    )


def live_bytes(config: ModelConfig, setup: Setup) -> int:
    """The most that a micro-batch holds beside the model, gradients and optimizer that are there before."""
    model = Transformer(config)
    model.initialize(torch.Generator().manual_seed(0))
    if setup.method == "qlora":
        quantize(model, "int4", method="nearest")
    if setup.method == "full":
        model.requires_grad_(True)
    else:
        add_adapter(model, AdapterSettings(rank=setup.rank))
    model.is_recomputed = setup.recomputes
    rows = torch.randint(0, config.vocab_size, (setup.micro_batch, 2, setup.seq_length // 2 + 1)).tolist()
    batch = stack(rows, setup.seq_length, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with recompute(model), LiveBytes() as seen:
        sum_loss(model, batch).backward()
    return seen.peak


WAYS = [(method, recomputes) for method in ("full", "lora", "qlora") for recomputes in (False, True)]


@pytest.mark.parametrize("family", ["gpt_bigcode", "starcoder2"])
@pytest.mark.parametrize(("method", "recomputes"), WAYS)
@pytest.mark.parametrize("size", ["deep", "many words"])
def test_what_a_step_keeps_and_makes_is_what_the_plan_counts(
    family: str, method: Method, recomputes: bool, size: str
) -> None:
    """Of live tensors, in float32, where blocks weigh most and where the head does."""
    config = shape(family, 128, 6, 512) if size == "deep" else shape(family, 128, 2, 8192)
    setup = Setup(
        method=method,
        seq_length=256,
        micro_batch=3,
        precision="float32",
        recomputes=recomputes,
        on_gpu=False,
    )
    plan = plan_finetune(config, setup)
    assert live_bytes(config, setup) == pytest.approx(plan.activation_bytes + plan.scratch_bytes, rel=0.05)


def test_no_copies_of_all_weights_stay_where_blocks_are_computed_again() -> None:
    """Under autocast in 16 bits, beside weights in 32 that learn: sharded models could not shard them."""
    model = Transformer(shape("gpt_bigcode", 128, 12, 64)).requires_grad_(True)
    model.is_recomputed = True
    batch = stack([[[1] * 9]], 8, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as seen:
        with loop._autocast(torch.device("cpu"), "bfloat16"):
            loss = sum_loss(model, batch)
        loss.backward()
    assert seen.peak < 2 * model.config.num_parameters / 2


# What the users of the original met (training.md, 1.5): #15, #77, #161, and what was published since.
@pytest.mark.parametrize(
    ("setup", "memory", "fits"),
    [
        (Setup(method="lora"), 24 * GB, False),  # starcoder#15: 31 GB of weights on one 24 GB card
        (Setup(method="qlora"), 24 * GB, True),
        (Setup(method="full"), 80 * GB, False),  # #143: all weights on one card
        (Setup(method="lora", devices=2), 40 * GB, True),
        (Setup(method="full", devices=8, seq_length=1024), 80 * GB, True),  # as StarChat was trained
        (Setup(method="qlora", seq_length=8192), 80 * GB, True),  # #77: 8K context
    ],
)
def test_what_users_asked_about_starcoder_is_answered(setup: Setup, memory: int, fits: bool) -> None:
    found = fitting(STARCODER, setup, memory)
    assert (found is not None) == fits
    assert found is None or found.fits(memory)


def test_what_two_gpus_do_not_hold_waits_on_the_cpu() -> None:
    """starcoder#77: ZeRO-3 on two cards of 40 GB ran out of memory."""
    found = fitting(STARCODER, Setup(method="full", devices=2), 40 * GB)
    assert found is not None and found.setup.offloads
    assert found.host_bytes == 16 * STARCODER.num_parameters


def test_the_quickest_way_that_fits_is_taken() -> None:
    config, setup = KNOWN["bigcode/starcoderbase-1b"], Setup(method="lora", seq_length=1024)
    totals = [plan_finetune(config, way).total_bytes for way in ways(setup)]
    assert totals[0] > totals[1]
    roomy, tight = (fitting(config, setup, int(total / 0.95) + 1) for total in totals)
    assert roomy is not None and not roomy.setup.recomputes
    assert tight is not None and tight.setup.recomputes
    assert fitting(config, setup, totals[1] // 2) is None


def test_the_longest_rows_fit_and_longer_ones_do_not() -> None:
    longest = longest_seq_length(STARCODER, Setup(method="qlora"), 16 * GB)
    assert 0 < longest < STARCODER.max_positions
    assert fitting(STARCODER, Setup(method="qlora", seq_length=longest), 16 * GB)
    assert not fitting(STARCODER, Setup(method="qlora", seq_length=longest + 128), 16 * GB)


def test_the_verb_answers_from_the_config_alone(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["plan", "bigcode/starcoder", "--finetune", "lora", "--gpus", "6x15GB", "--seq-length", "2048"]
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["plan"]["setup"]["sharding"] == "full"
    assert found["command"].startswith(
        "torchrun --nproc_per_node 6 -m starcoder finetune --model bigcode/star"
    )
    assert found["command"].endswith("--checkpoint-activations")
    assert found["plan"]["total_bytes"] <= 0.95 * 15 * GB
    assert main(flags) == 0
    assert "fits in 6x15GB" in capsys.readouterr().out
    assert main(["plan", "bigcode/starcoder", "--finetune", "full", "--gpus", "24GB"]) == 0
    assert "--finetune qlora fits" in capsys.readouterr().out


def test_rows_are_as_long_as_finetune_makes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "--finetune", "lora", "--memory", "4GB", "--json"]) == 0
    )  # the bundled model has 1024
    assert json.loads(capsys.readouterr().out)["plan"]["setup"]["seq_length"] == 1024
    assert main(["plan", "bigcode/starcoder", "--finetune", "lora", "--memory", "4GB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["setup"]["seq_length"] == 2048


def test_planning_needs_no_torch() -> None:
    script = (
        "import sys; from starcoder.cli import main\n"
        "assert main(['plan', 'bigcode/starcoder', '--finetune', 'qlora', '--gpus', '24GB']) == 0\n"
        "assert not {'torch', 'huggingface_hub'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus", "6x15GB"], "--gpus goes with --finetune"),
        (["--finetune", "lora", "--gpus", "many"], "expected"),
        (["--finetune", "lora", "--gpus", "24GB", "--memory", "9GB"], "both --gpus and --memory"),
        (["--finetune", "lora", "--seq-length", "9000"], "has 8192 positions"),
        (["--finetune", "lora", "--rank", "0"], "expected at least 1"),
        (["--finetune", "lora", "--context", "9"], "is for running a model"),
    ],
)
def test_mistakes_are_two_lines(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "bigcode/starcoder", *flags]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error and hint.startswith("hint: ")


STEP = """
import json, sys
from benchmarks.finetune_memory import Case, peak_bytes, planned
case = Case(**json.loads(sys.argv[1]))
print(json.dumps([planned(case).total_bytes, peak_bytes(case)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_measured_step_peaks_within_a_tenth_of_its_plan(method: str) -> None:
    """On a small shape; `benchmarks/finetune_memory.py` does so on larger ones."""
    sizes = {"hidden_size": 512, "num_layers": 6, "seq_length": 1024, "micro_batch": 2}
    done = subprocess.run(
        [sys.executable, "-c", STEP, json.dumps({"family": "gpt_bigcode", "method": method} | sizes)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    planned, peak = json.loads(done.stdout.splitlines()[-1])
    assert planned == pytest.approx(peak, rel=0.1)
