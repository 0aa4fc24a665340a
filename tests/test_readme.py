"""The README tells the truth: its commands run, its table is the measured one, CI runs its test command."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

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
    # A hub id needs the network, a training run hours, a server does not end, others tell what they do.
    [
        line
        for line in commands()
        if "--model" not in line
        and arguments(line)[0] not in ("finetune", "pretrain", "doctor", "serve", "editor-config", *TALKATIVE)
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
    assert found[1].endswith(".venv/bin/python -m pytest")


def load_table_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_table_is_up_to_date():
    """`make docs` writes it."""
    script = load_table_script()
    assert script.replaced(README, script.table()) == README


def test_dependencies_are_told_with_reasons():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = [re.match(r"[\w-]+", line)[0] for line in project["dependencies"]]
    section = README.partition("## Dependencies\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| ([a-z_]+) \| .{10,} \|$", section, re.MULTILINE) == names


def test_links_lead_somewhere():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_readme_is_short():
    assert len(README.splitlines()) < 200
