"""The README tells the truth: its commands run, its tables are measured, CI runs its test command."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from starcoder.checkpoint import BUNDLED
from starcoder.cli import build, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
SOURCE = "def add(a, b):\n    return \n\n\ndef twice(x):\n    return add(x, x)\n"

TALKATIVE = ("prepare", "attribution", "evaluate")  # verbs that show progress on stderr

needs_bundled_model = pytest.mark.skipif(
    not (BUNDLED / "config.json").is_file(), reason="the bundled model is not trained yet"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command line of the README that uses our own program."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in lines if "pip install" not in line]


def shown() -> dict[str, list[str]]:
    """What the README shows below a command, by command."""
    found: dict[str, list[str]] = {}
    for line in (line for block in blocks("console") for line in block.splitlines()):
        if line.startswith("$ "):
            found[line[2:]] = below = []
        else:
            below.append(line)
    return found


def arguments(command: str) -> list[str]:
    """What our program gets in the (last part of the) command."""
    words = shlex.split(command.rpartition(" | ")[2], comments=True)
    assert words[0] == "starcoder", command
    return words[1:]


@pytest.fixture
def project(tmp_path) -> Path:
    """A user's project with the file of the examples, and `starcoder` on the path."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "app.py").write_text(SOURCE)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "starcoder"
    python, root = shlex.quote(sys.executable), shlex.quote(str(ROOT))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {python} -m starcoder "$@"\n')
    program.chmod(0o755)
    return tmp_path


def shell(command: str, project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
        env=os.environ | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    build().parse_args(arguments(command), print_error=False, exit_on_error=False)


@pytest.mark.parametrize(
    "verb",
    [
        "generate",
        "complete",
        "plan",
        "quantize",
        "bench",
        "export",
        "finetune",
        "merge",
        "pretrain",
        "serve",
        "chat",
        "editor-config",
        "prepare",
        "attribution",
        "evaluate",
        "doctor",
    ],
)
def test_every_verb_has_an_example(verb):
    assert verb in {arguments(command)[0] for command in commands()}


def test_doctor_runs_as_shown(project):
    done = shell("starcoder doctor", project)
    assert (done.returncode, done.stderr) == (0, "")


@needs_bundled_model
@pytest.mark.parametrize(
    "command",
    # A hub id needs the network, a training run hours and is there for merging, a server does not end,
    # others tell what they do.
    [
        line
        for line in commands()
        if "--model" not in line
        and arguments(line)[0]
        not in ("finetune", "merge", "pretrain", "doctor", "serve", "editor-config", *TALKATIVE)
    ],
)
def test_every_example_completes(command, project, monkeypatch, capsys):
    """In this process where no shell is needed: each new one imports torch."""
    if " | " in command:
        done = shell(command, project)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.chdir(project)
        code = main(arguments(command))
        out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.strip()
    assert [line for line in shown().get(command, []) if line not in out.splitlines()] == []


@needs_bundled_model
def test_a_dataset_is_prepared_indexed_and_measured_as_shown(project, monkeypatch, capsys):
    (project / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    monkeypatch.chdir(project)
    for command in (line for line in commands() if arguments(line)[0] in TALKATIVE):
        assert main(arguments(command)) == 0, (command, capsys.readouterr().err)
    assert capsys.readouterr().out.strip()
    assert (project / "data" / "mine" / "README.md").is_file()


@needs_bundled_model
@pytest.mark.parametrize("block", blocks("python"))
def test_python_example_runs(block, project):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        capture_output=True,
        text=True,
        check=False,
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_recipe_of_the_example_is_there():
    recipes = [arguments(command)[1] for command in commands() if "recipes/" in command]
    assert recipes and all((ROOT / recipe).is_file() for recipe in recipes)


def test_ci_runs_the_install_and_test_commands():
    """`.ci/run` takes both one-line commands out of the README by these patterns."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    patterns = re.findall(r"grep -m1 '(.*?)' README.md", script)
    found = [next(line for line in README.splitlines() if re.search(pattern, line)) for pattern in patterns]
    assert len(found) == 2 and all(line.startswith("python3 -m venv .venv && ") for line in found)
    assert found[0].endswith('.venv/bin/starcoder generate "def fibonacci(n):"')
    assert found[1].endswith(".venv/bin/python -m pytest -n 2")


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of `benchmarks/`, whose modules are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in ("table", "rows", "goals"):
        if name not in before:
            sys.modules.pop(name, None)


def test_what_was_measured_is_up_to_date(benchmark):
    """`make docs` writes it."""
    for path, text in benchmark("table").pages().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run python benchmarks/table.py"


def test_every_result_has_rows_and_every_row_of_the_readme_is_in_full_elsewhere(benchmark):
    table = benchmark("table")
    results = {path.stem for path in table.RESULTS.glob("*.json")}
    known = {name for section in table.SECTIONS.values() for name in section}
    assert results | set(table.HEADLINES) <= known
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert known <= scripts


def test_results_that_are_to_come_have_rows_when_they_come(benchmark):
    table = benchmark("table")
    kernel = {"matrix": "1b up", "scheme": "int4", "gb_per_s": 20.0, "share": 0.9}
    reports = {
        "kernels": {
            "rows": [
                kernel | {"variant": name, "gop_per_s": speed, "torch_float32_gop_per_s": 50.0}
                for name, speed in (("avx2", 200.0), ("portable", 10.0))
            ]
        },
        "finetune_memory": {"limit": 0.1, "worst": 0.12, "cases": [{"error": 0.05}, {"error": -0.12}]},
    }
    running, planned = (
        table.table(reports, table.SECTIONS[name]) for name in ("Running a model", "Fine-tuning")
    )
    assert (
        "1B, int4 | 20.0 GB/s, 90% of memory bandwidth; 200 GOP/s | 512 rows in torch's float32: 50"
        in running
    )
    assert "2 cases | -12.0% to +5.0% | 1 within 10%" in planned
    missed = benchmark("goals").missed(reports)
    assert missed == (
        "Of 1 goals set beforehand 1 are missed: error of planned fine-tuning memory 0.12 (at most 0.1).\n"
    )


def test_dependencies_are_told_with_reasons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
    section = README.partition("## Dependencies\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([a-z_0-9]+) \| .{10,} \|$", section, re.MULTILINE) == names


def test_links_lead_somewhere():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_page_is_linked_from_the_readme():
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#:]+)\)", README))


def test_readme_is_short():
    assert len(README.splitlines()) < 180
