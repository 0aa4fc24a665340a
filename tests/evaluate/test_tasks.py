"""Rows become problems whose known solutions pass and whose stubs fail; data is what its checksum says."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate import data
from starcoder.evaluate.data import Source
from starcoder.evaluate.matching import compared
from starcoder.evaluate.python_tasks import restored
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.tasks import TASKS, find
from tests.evaluate.judging import PlainJudge

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = {
    "humaneval": "HumanEval.jsonl.gz",
    "humaneval-infilling": "HumanEval-SingleLineInfilling.jsonl.gz",
    "humanevalplus-mini": "HumanEvalPlus-Mini.jsonl.gz",
    "mbppplus": "MbppPlus.jsonl.gz",
}


def task(name):
    [found] = find([name])
    return found


def kinds(problems, completion_of):
    judge = PlainJudge()
    return {
        problem.id: judge.submit(problem.program(completion_of(problem))).result().kind
        for problem in problems
    }


@pytest.mark.parametrize("name", ["starter", "starter-infilling"])
def test_known_solutions_of_our_own_problems_pass_and_stubs_fail(name):
    problems, _ = task(name).load()
    assert len(problems) == task(name).num_problems
    assert set(kinds(problems, lambda problem: problem.reference).values()) == {"passed"}
    assert "passed" not in kinds(problems, lambda problem: "    raise ValueError\n").values()


def test_a_hole_shows_the_solution_but_for_its_line():
    problems, _ = task("starter-infilling").load()
    whole, _ = task("starter").load()
    for problem, full in zip(problems, whole, strict=True):
        assert problem.code(problem.reference) == full.code(full.reference)
        assert problem.reference not in ("", problem.request.suffix)


@pytest.mark.parametrize("name", FILES)
def test_published_sets_are_read_whole(name):
    path = SHARED / FILES[name]
    if not path.exists():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    problems, read = task(name).load(path)
    assert len(problems) == task(name).num_problems
    assert read.sha256 == task(name).source.sha256
    some = problems[:: max(1, len(problems) // 25)]
    assert set(kinds(some, lambda problem: problem.reference).values()) == {"passed"}


def test_more_inputs_catch_what_a_wrong_body_returns():
    row = {
        "task_id": "HumanEval/999",
        "prompt": "def half(x):\n",
        "entry_point": "half",
        "canonical_solution": "    return x / 2\n",
        "base_input": [[2.0]],
        "plus_input": [[3.0], [float("inf")]],
        "atol": 0,
    }
    problem = task("humanevalplus").rule(row)
    judge = PlainJudge()
    passed = {
        body: judge.submit(problem.program(body)).result().passed
        for body in (
            "    return x / 2\n",
            "    return x * 0.5 + 1e-9\n",
            "    return 1.0\n",
            "    return x // 2\n",
        )
    }
    assert list(passed.values()) == [True, True, False, False]


def test_mbpp_takes_the_test_split_alone():
    row = {
        "text": "Add.",
        "code": "def f(a): return a",
        "test_list": ["assert f(1) == 1"],
        "test_setup_code": "",
    }
    rule = task("mbpp").rule
    assert [rule(row | {"task_id": number}) is None for number in (10, 11, 510, 511)] == [
        True,
        False,
        False,
        True,
    ]
    problem = rule(row | {"task_id": 11})
    assert problem.request.prefix == '"""\nAdd.\nassert f(1) == 1\n"""\n'
    assert kinds([problem], lambda problem: problem.reference) == {"Mbpp/11": "passed"}


@pytest.mark.parametrize(
    ("number", "stored", "expected"),
    [
        (2, [[1], [2]], [(1,), (2,)]),
        (63, [[[1, 2]]], [[(1, 2)]]),
        (75, [[[1, 2]], 3], [[(1, 2)], 3]),
        (115, [[[1], []]], [[{1}, {}]]),
        (124, ["1.5", "2j"], [1.5, 2j]),
        (278, [[1, [2]]], [(1, (2,))]),
        (580, [[1, [2]]], ((1, (2,)),)),
        (722, [{"a": [1]}, 2], [{"a": (1,)}, 2]),
        (1, [[1]], [[1]]),
    ],
)
def test_arguments_get_back_the_types_json_has_not(number, stored, expected):
    assert restored(number, stored) == expected


def test_other_languages_make_one_program_of_code_and_tests():
    row = {
        "name": "HumanEval_0",
        "language": "js",
        "prompt": "function f(){\n",
        "tests": "test()",
        "stop_tokens": ["\nfunction "],
    }
    program = task("multiple-js").rule(row).program("}")
    assert (program.source, program.tests, program.language) == ("function f(){\n}", "test()", "javascript")
    pack = {
        "task_id": "JavaScript/0",
        "prompt": "const f = () => {\n",
        "canonical_solution": "}",
        "test": "f()",
    }
    assert "throw" in task("humanevalpack-js").rule(pack).program("}").tests


def test_names_are_unique_and_may_hold_stars():
    names = [one.name for one in TASKS]
    assert len(names) == len(set(names))
    assert [one.name for one in find(["starter*", "starter"])] == ["starter", "starter-infilling"]
    with pytest.raises(ConfigError, match="no task 'humanevall'") as caught:
        find(["humanevall"])
    assert "'humaneval'" in caught.value.hint


def test_a_download_is_kept_and_its_checksum_is_held_to(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    source = Source(url=file.as_uri(), sha256=right)
    assert data.fetch(source, tmp_path / "cache").rows == ({"a": 1}, {"a": 2})
    file.unlink()
    assert data.fetch(source, tmp_path / "cache").sha256 == right
    with pytest.raises(ConfigError, match="has sha256"):
        data.fetch(Source(url=file.as_uri(), sha256="0" * 64), tmp_path / "cache")
    with pytest.raises(ConfigError, match="cannot download"):
        data.fetch(Source(url=(tmp_path / "other").as_uri()), tmp_path / "cache")


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x1f\x8b"])
def test_what_holds_no_problems_is_refused(content, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match=r"problems|JSON object"):
        data.read(file)


def test_a_file_of_another_task_is_refused(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"task_id": "a", "question": "b"}]))
    with pytest.raises(ConfigError, match="expected a text") as caught:
        task("humaneval").load(file)
    assert "question, task_id" in caught.value.hint


@pytest.mark.parametrize("name", [one.name for one in TASKS])
def test_every_task_names_the_fields_of_a_file_that_is_not_its_own(name, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"task_id": 11, "name": 1, "question": "b"}))
    with pytest.raises(ConfigError, match=r"expected a (text|list|line)") as caught:
        task(name).load(file)
    assert "task" in caught.value.hint


def test_santacoders_lines_are_problems_of_their_own_whatever_blanks_answers_have(tmp_path):
    """Fields and layout as in the notebook that made the set: a row a line, no newline beside the hole."""
    lines = ["    if a > b:", "        return a", "    return b"]
    rows = [
        {
            "name": f"humaneval-larger-L{number}",
            "language": language,
            "prompt": "def larger(a, b):\n" + "\n".join(lines[:number]),
            "suffix": "\n".join(lines[number + 1 :]),
            "canonical_solution": line,
            "tests": "",
        }
        for language in ("py", "js")
        for number, line in enumerate(lines)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    problems, _ = task("santacoder-fim").load(file)
    assert [problem.group for problem in problems] == ["py"] * 3 + ["js"] * 3
    assert [compared(problem, f"\n{problem.reference}\n")["exact_match"] for problem in problems] == [1.0] * 6
    assert compared(problems[0], "\n    if a > b:\n")["parses"] == 1.0
    assert compared(problems[0], "    if a >= b:")["exact_match"] == 0.0


def test_multipl_es_rows_run_with_their_own_stops(tmp_path):
    row = {
        "name": "HumanEval_1_larger", "language": "js", "prompt": "function larger(a, b){\n",
        "doctests": "transform", "original": "/x/HumanEval_1_larger.py", "prompt_terminology": "reworded",
        "tests": "if (larger(1, 2) !== 2) throw 'assert';", "stop_tokens": ["\nfunction ", "\n//"],
    }  # fmt: skip
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row]))
    (problem,), _ = task("multiple-js").load(file)
    assert problem.request.sampling.stop == ("\nfunction ", "\n//")
    with Sandbox(workers=1) as sandbox:
        if not sandbox.available("javascript"):
            pytest.skip("no tool-chain for JavaScript on this machine")
        right, wrong = (
            sandbox.submit(problem.program(f"    return {body};\n}}\n")).result().kind == "unconfirmed"
            for body in ("a > b ? a : b", "a")
        )
    assert (right, wrong) == (True, False)


def test_humanevalpacks_rows_run_with_their_own_solutions(tmp_path):
    row = {
        "task_id": "CPP/1", "prompt": "int larger(int a,int b){\n", "import": "", "declaration": "",
        "canonical_solution": "    return max(a,b);\n}\n", "buggy_solution": "    return min(a,b);\n}\n",
        "bug_type": "", "failure_symptoms": "", "entry_point": "larger", "signature": "", "docstring": "",
        "instruction": "", "test_setup": "", "example_test": "",
        "test": "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (larger(1,2)==2);\n}\n",
    }  # fmt: skip
    row["prompt"] = "#include<algorithm>\nusing namespace std;\n" + row["prompt"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    (problem,), _ = task("humanevalpack-cpp").load(file)
    with Sandbox(workers=1) as sandbox:
        if not sandbox.available("cpp"):
            pytest.skip("no tool-chain for C++ on this machine")
        right, wrong = (
            sandbox.submit(problem.program(row[name])).result().kind == "unconfirmed"
            for name in ("canonical_solution", "buggy_solution")
        )
    assert (right, wrong) == (True, False)
