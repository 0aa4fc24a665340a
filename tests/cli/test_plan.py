"""`starcoder plan` answers from numbers alone: known models offline, verdict and what to use instead."""

import json
import subprocess
import sys

import pytest

from starcoder import checkpoint
from starcoder.cli import main
from starcoder.plan import KNOWN, plan

STARCODER = KNOWN["bigcode/starcoder"]


def planned(capsys, *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_known_model_is_planned_without_network_or_torch():
    script = (
        "import sys; from starcoder.cli import main\n"
        "assert main(['plan', 'bigcode/starcoder', '--quantize', 'int8', '--memory', '24GB']) == 0\n"
        "assert not {'torch', 'huggingface_hub', 'socket'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fits in 24.0 GB" in done.stdout


def test_the_document_holds_the_plan_and_every_choice(capsys):
    found = planned(
        capsys, "bigcode/starcoder", "--quantize", "int8", "--context", "4096", "--memory", "24GB"
    )

    expected = plan(STARCODER, "int8", context=4096)
    assert found["plan"]["weight_bytes"] == expected.weight_bytes == 15_771_627_520
    assert found["plan"]["total_bytes"] == expected.total_bytes
    assert found["use"] == found["plan"]
    assert [choice["weights"] for choice in found["choices"]] == ["float32", "bfloat16", "int8", "int4"]
    assert [choice["fits"] for choice in found["choices"]] == [False, False, True, True]
    assert found["memory_bytes"] == 24 * 10**9


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        ("80GB", "fits in 80.0 GB"),
        ("24GB", "does not fit in 24.0 GB, use --quantize int8"),
        ("40 GB", "does not fit in 40.0 GB, use --dtype bfloat16"),
        ("9.3GB", "does not fit in 9.3 GB, use --quantize int4 --context"),
        ("4GiB", "does not fit in 4.3 GB, nor does any choice: use 9.0 GB or a smaller model"),
    ],
)
def test_the_verdict_says_what_to_use(memory, verdict, capsys):
    assert main(["plan", "bigcode/starcoder", "--memory", memory]) == 0
    assert verdict in capsys.readouterr().out


def test_a_folder_is_planned_as_it_is_stored(folder, tmp_path, capsys):
    checkpoint.quantize_folder(folder, tmp_path / "int4", "int4")
    (tmp_path / "int4" / "model.safetensors").unlink()  # config.json is enough

    assert planned(capsys, str(folder))["plan"]["weights"] == "float32"
    assert planned(capsys, str(tmp_path / "int4"))["plan"]["weights"] == "int4"
    assert planned(capsys, str(folder), "--dtype", "bfloat16")["plan"]["weights"] == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--memory", "lots"], "--memory is 'lots'; expected a size"),
        (["--context", "0"], "context is 0; expected at least 1"),
        (["--quantize", "int8", "--dtype", "float16"], "both --quantize and --dtype are given"),
        (["--quantize", "int3"], "--quantize is 'int3'; expected one of int8, int4"),
    ],
)
def test_mistakes_are_two_lines(arguments, error, capsys):
    assert main(["plan", "bigcode/starcoder", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[0]) == (2, f"error: {error}")
