"""The planner of fine-tuning: its parts are the real ones, and a measured step peaks at what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import starcoder
from starcoder.adapters import AdapterSettings
from starcoder.checkpoint.adapting import add_adapter
from starcoder.cli import main
from starcoder.config import ModelConfig
from starcoder.plan import KNOWN
from starcoder.train.memory import (
    Setup,
    adapter_parameters,
    fitting,
    longest_seq_length,
    plan_finetune,
    ways,
)
from tests.tiny import VARIANTS, make_model

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
    longest = longest_seq_length(STARCODER, Setup(method="qlora"), 20 * GB)
    assert 0 < longest < STARCODER.max_positions
    assert fitting(STARCODER, Setup(method="qlora", seq_length=longest), 20 * GB)
    assert not fitting(STARCODER, Setup(method="qlora", seq_length=longest + 128), 20 * GB)


def test_the_verb_answers_from_the_config_alone(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["plan", "bigcode/starcoder", "--finetune", "lora", "--gpus", "6x15GB", "--seq-length", "2048"]
    assert main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["plan"]["setup"]["sharding"] == "full"
    assert found["flags"].startswith("torchrun --nproc_per_node 6 -m starcoder finetune --method lora")
    assert found["plan"]["total_bytes"] <= 0.95 * 15 * GB
    assert main(flags) == 0
    assert "fits in 6x15GB" in capsys.readouterr().out
    assert main(["plan", "bigcode/starcoder", "--finetune", "full", "--gpus", "24GB"]) == 0
    assert "--finetune qlora does" in capsys.readouterr().out


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
from benchmarks.finetune_memory import measured
print(json.dumps(measured(*json.loads(sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_measured_step_peaks_within_a_tenth_of_its_plan(method: str) -> None:
    """On a small shape; `benchmarks/finetune_memory.py` does so on larger ones."""
    asked = json.dumps(["gpt_bigcode", 512, 6, 1024, 2, method, False])
    done = subprocess.run(
        [sys.executable, "-c", STEP, asked], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plan_bytes"] == pytest.approx(found["peak_bytes"], rel=0.1)
