"""`starcoder evaluate` from end to end on its own problems, and what it refuses."""

import json
import re
import subprocess

import pytest

from starcoder.cli import main
from starcoder.errors import SandboxError
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.tasks import TASKS, find

BASE = ["evaluate", "starter", "--max-tokens", "8", "--limit", "3"]
RUNS = [*BASE, "--allow-code-execution", "--workers", "1"]


@pytest.fixture(scope="module")
def walls():
    """For tests that run programs: skips where nothing keeps them apart."""
    try:
        with Sandbox(workers=1):
            pass
    except SandboxError as error:
        pytest.skip(f"programs cannot be shut off on this machine: {error}")


def run(capsys, *arguments):
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_nothing_runs_without_being_allowed(capsys):
    error = refused(capsys, *BASE)
    assert "starter runs programs that a model wrote" in error
    assert "--allow-code-execution" in error


def test_a_run_prints_its_score_and_leaves_its_files(walls, capsys, tmp_path):
    printed = run(capsys, *RUNS, "--output", str(tmp_path))
    assert re.search(r"starter +nano +pass@1 +\d", printed)
    found = json.loads((tmp_path / "results.json").read_text())
    [result] = found["results"]
    assert (result["num_problems"], result["recipe"]["name"], len(result["recipe"]["hash"])) == (
        3,
        "greedy",
        12,
    )
    assert 0 <= result["pass@1"] <= 1
    assert all(result["isolation"]["holds"].values())
    rows = [json.loads(line) for line in (tmp_path / "starter-nano.samples.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["Starter/0", "Starter/1", "Starter/2"]
    assert "<h2>starter</h2>" in (tmp_path / "report.html").read_text()

    again = json.loads(run(capsys, *RUNS, "--output", str(tmp_path), "--json"))
    same = {"seconds": 0, "isolation": 0, "environment": 0}
    assert again["results"][0] | same == result | same
    assert "belongs to a run with other options" in refused(
        capsys, *RUNS, "--output", str(tmp_path), "--seed", "1"
    )


def test_known_solutions_score_all(walls, capsys, tmp_path):
    problems, _ = find(["starter"])[0].load()
    file = tmp_path / "samples.jsonl"
    rows = [{"task_id": one.id, "completion": one.reference} for one in problems]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(capsys, "evaluate", "starter", "--samples", str(file), "--allow-code-execution", "--json")
    assert json.loads(found)["results"][0]["pass@1"] == 1.0


def test_an_answer_of_a_server_is_cut_where_the_engine_would_end_it():
    from starcoder.cli.evaluating import _cut
    from starcoder.request import CompletionRequest, SamplingParams

    def cut(text, **sampling):
        return _cut(
            CompletionRequest(prefix="def f():\n    x = 1", sampling=SamplingParams(**sampling)), text
        )

    assert cut("a\nb\nc\n", max_lines=2).rstrip("\n") == "a\nb"
    assert cut("\n    y = 2\nz = 3\n", min_indent=4).rstrip() == "\n    y = 2"
    assert cut("a###b", stop=("###",)) == "a"
    assert cut("a\nb") == "a\nb"


def test_quantized_models_stand_side_by_side(walls, capsys):
    found = json.loads(run(capsys, *RUNS, "--quantize", "none,int8", "--json"))
    assert [result["quantize"] for result in found["results"]] == ["none", "int8"]
    [difference] = found["differences"]
    assert (difference["first"], difference["second"]) == ("nano", "nano, int8")


def test_a_repository_is_measured_without_running_anything(capsys, tmp_path):
    (tmp_path / "a.py").write_text("def add(a, b):\n    total = a + b\n    return total\n")
    command = ["evaluate", "my-repo", "--repo", str(tmp_path), "--json", "--limit", "2"]
    [result] = json.loads(run(capsys, *command))["results"]
    assert set(result["groups"]) == {"next-line", "line", "function"}
    assert {"exact_match", "edit_similarity", "identifier_match", "parses"} <= result.keys()
    assert "isolation" not in result


def test_a_repository_is_measured_by_its_own_tests(walls, capsys, tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.py").write_text("def add(a, b):\n    total = a + b\n    return total\n")
    (tmp_path / "check.py").write_text("from src.a import add\nassert add(1, 2) == 3\n")
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    command = ["evaluate", "my-repo", "--repo", str(source), "--json", "--limit", "1", "--workers", "1"]
    tests = [*command, "--test-command", "python3 check.py"]
    assert "--test-command runs programs" in refused(capsys, *tests)
    [result] = json.loads(run(capsys, *tests, "--allow-code-execution"))["results"]
    assert {"unconfirmed@1", "exact_match"} <= result.keys()
    assert result["num_samples"] == 3
    failing = [*command, "--test-command", "false", "--allow-code-execution"]
    assert "tests fail as it is" in refused(capsys, *failing)


def test_an_adapter_of_ours_stands_beside_its_base_on_the_users_repository(capsys, tmp_path):
    pytest.importorskip("peft", reason="adapters come with the extra `train`")
    repository, adapter, output = tmp_path / "repository", tmp_path / "adapter", tmp_path / "results"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for name in ("add", "join"):
        body = f"def {name}(first, second):\n    total = first + second\n    return total\n"
        (repository / f"{name}.py").write_text(body * 4)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", name], check=True)
    steps = ["--max-steps", "1", "--seq-length", "512"]
    run(capsys, "finetune", "--data", str(repository), "--output", str(adapter), *steps)
    command = ["evaluate", "my-repo", "--repo", str(repository), "--holdout-commits", "1", "--limit", "2"]
    found = json.loads(run(capsys, *command, "--compare", str(adapter), "--output", str(output), "--json"))
    assert [result["model"] for result in found["results"]] == ["nano", str(adapter)]
    assert len(found["differences"]) == 1
    page = (output / "report.html").read_text()
    assert "paired test p" in page and "Gained" in page


def test_perplexity_of_files(capsys, tmp_path):
    (tmp_path / "a.py").write_text("def add(a, b):\n    return a + b\n")
    command = ["evaluate", "perplexity", "--dataset", str(tmp_path)]
    found = json.loads(run(capsys, *command, "--quantize", "none,int8", "--json"))["results"]
    assert [one["quantize"] for one in found] == ["none", "int8"]
    assert found[0]["bits_per_byte"] == pytest.approx(found[1]["bits_per_byte"], rel=0.05)
    assert "bits per byte" in run(capsys, *command)
    assert "--dataset" in refused(capsys, "evaluate", "perplexity")


def test_the_list_names_every_task_and_recipe(capsys):
    printed = run(capsys, "evaluate", "--list")
    assert all(task.name in printed for task in TASKS)
    found = json.loads(run(capsys, "evaluate", "--list", "--json"))
    assert {task["task"] for task in found["tasks"]} >= {"humaneval", "my-repo", "perplexity"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no task is named"),
        (["humanevall"], "no task 'humanevall'"),
        (["starter", "--allow-code-execution", "--n-samples", "2"], "at temperature 0 are all the same"),
        (["starter", "--allow-code-execution", "--recipe", "x"], "no recipe 'x'"),
        (["starter", "--allow-code-execution", "--quantize", "int3"], "quantize is 'int3'"),
        (["starter", "--limit", "0"], "limit is 0"),
        (["starter", "--k", "0"], "k is 0"),
        (["starter,humaneval", "--allow-code-execution", "--samples", "a"], "belong to one task"),
        (["starter", "--endpoint", "http://x", "--compare", "y"], "--endpoint asks one server"),
    ],
)
def test_mistakes_are_told(capsys, arguments, message):
    assert message in refused(capsys, "evaluate", *arguments)
