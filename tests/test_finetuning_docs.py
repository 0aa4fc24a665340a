"""docs/finetuning.md names tests and commands that are there."""

import re
import shlex
from pathlib import Path

import pytest

from starcoder.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "finetuning.md").read_text("utf-8")
PLANS = sorted(set(re.findall(r"starcoder (plan bigcode/[^`\n]*)", DOCUMENT)))


def test_every_failure_of_the_original_names_tests_that_are_there() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    table = [line for line in DOCUMENT.splitlines() if line.startswith("|") and line.count("|") >= 4]
    failures = [line for line in table if "starcoder plan" in line or "`test_" in line]
    assert len(failures) > 25
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    assert named - defined == set()


@pytest.mark.parametrize("command", PLANS)
def test_plans_are_answered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert "fits in" in capsys.readouterr().out
