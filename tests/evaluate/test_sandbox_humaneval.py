"""Known solutions pass, stubs fail, and mutants fare as their tests say when these are simply run."""

import gzip
import importlib.util
import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from starcoder.evaluate import python_tasks
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.verdicts import Limits, Program

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
LIMITS = Limits(timeout_s=15)
NUM_MUTANTS = 100

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the benchmarks' files are not part of the project; they are in ../shared/data"
)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def mixed():
    spec = importlib.util.spec_from_file_location("mixed", ROOT / "benchmarks" / "mixed.py")
    assert spec and spec.loader
    sys.modules["mixed"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mixed"]


def rows(name):
    with gzip.open(DATA / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def failed(sandbox, programs):
    return {index: verdict for index, verdict in sandbox.run(programs) if not verdict.passed}


def test_every_known_solution_of_humaneval_passes(sandbox, mixed):
    cases = mixed.humaneval(DATA / "HumanEval.jsonl.gz")
    assert len(cases) == 164
    assert failed(sandbox, [Program(case.source, case.tests) for case in cases]) == {}


def test_no_stub_of_humaneval_passes(sandbox, mixed):
    stubs = [mixed.stub(case) for case in mixed.humaneval(DATA / "HumanEval.jsonl.gz")]
    assert len(failed(sandbox, [Program(case.source, case.tests) for case in stubs])) == 164


def test_every_known_solution_of_single_line_infilling_passes(sandbox):
    problems = rows("HumanEval-SingleLineInfilling.jsonl.gz")
    assert len(problems) == 1033
    programs = [
        Program(
            row["prompt"] + row["canonical_solution"] + row["suffix"],
            f"{row['test']}\ncheck({row['entry_point']})\n",
        )
        for row in problems
    ]
    assert failed(sandbox, programs) == {}


def test_every_known_solution_of_mbpp_passes_its_assertions(sandbox):
    problems = rows("MbppPlus.jsonl.gz")
    assert len(problems) == 378
    programs = [
        Program(row["canonical_solution"], row["assertion"], entry_points=(row["entry_point"],))
        for row in problems
    ]
    assert failed(sandbox, programs) == {}


@pytest.mark.parametrize(
    ("file", "rule", "count"),
    [
        ("HumanEvalPlus-Mini.jsonl.gz", python_tasks.humaneval_plus, 164),
        # minutes: one problem alone takes 7 s and 2.2 GB without any sandbox
        pytest.param("MbppPlus.jsonl.gz", python_tasks.mbpp_plus, 378, marks=pytest.mark.slow),
    ],
)
def test_every_known_solution_passes_on_evalplus_inputs(file, rule, count):
    problems = [rule(row) for row in rows(file)]
    assert len(problems) == count
    limits = Limits(timeout_s=120, cpu_s=120, memory_bytes=6 << 30)
    with Sandbox(workers=2, limits=limits) as sandbox:
        verdicts = failed(sandbox, [problem.program(problem.reference) for problem in problems])
    assert {problems[index].id: verdict for index, verdict in verdicts.items()} == {}


def test_mutants_fare_as_when_their_tests_are_simply_run(sandbox, mixed):
    changed = [
        mutant for case in mixed.humaneval(DATA / "HumanEval.jsonl.gz") for mutant in mixed.mutants(case)
    ]
    cases = random.Random(0).sample(changed, NUM_MUTANTS)
    verdicts = dict(sandbox.run([Program(case.source, case.tests) for case in cases]))
    alarmed = {index for index, verdict in verdicts.items() if verdict.kind in ("timeout", "memory")}
    directly = {
        index: passes_directly(case.source + case.tests)
        for index, case in enumerate(cases)
        if index not in alarmed  # for ever here is for ever there: not worth the wait
    }
    assert {index: verdicts[index].passed for index in directly} == directly
    assert len(alarmed) < NUM_MUTANTS / 4
    assert 0 < sum(directly.values()) < NUM_MUTANTS / 2


def passes_directly(text):
    """Whether the text runs to its end in a child of this process. Only for texts made from known ones."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            exec(compile(text, "direct", "exec"), {})
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0
