"""No program gets a pass for anything but its return values, whatever the tests are and whatever it sends."""

import json
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from starcoder.evaluate.sandbox import pool, runner
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.schema import Channel
from starcoder.evaluate.sandbox.verdicts import KINDS, Limits, Program
from starcoder.evaluate.tasks import find
from tests.evaluate.hostile.forgeries import FORGERIES
from tests.evaluate.hostile.programs import filled

DATA = Path(__file__).parents[3] / "shared" / "data"
FILES = {
    "humaneval": "HumanEval.jsonl.gz",
    "humaneval-infilling": "HumanEval-SingleLineInfilling.jsonl.gz",
    "humanevalplus-mini": "HumanEvalPlus-Mini.jsonl.gz",
    "mbppplus": "MbppPlus.jsonl.gz",
}
LIMITS = Limits(timeout_s=1.0, cpu_s=2, memory_bytes=512 << 20)
STUCK = {"half a frame", "half a document", "colliding keys"}  # end by the time limit
EMPTY = {"set", "sorted", "list", "tuple"}

TEXTS = {
    "plain": "def check(candidate):\n    assert candidate(2, 3) == 5\n"
    "    assert candidate('a', 'b') == 'ab'\ncheck(add)\n",
    "builtins": "assert abs(add(2, 3) - 5) < 1e-6\nassert all(add(i, i) == 2 * i for i in range(1, 5))\n"
    "assert sorted(set([add(1, 1), add(2, 2)])) == [2, 4] and isinstance(add(1, 1), int)\n"
    "assert len(add([1], [2])) == 2 and tuple(map(lambda x: add(x, 1), (1, 2))) == (2, 3)\n",
    "exec": "names = {'expected': 5}\nexec('def verify(f):\\n    assert f(2, 3) == expected', names)\n"
    "names['verify'](add)\nassert eval('x + 1', {'x': add(1, 1)}) == 3\n",
    "exceptions": "def fails(*args):\n    try:\n        add(*args)\n"
    "    except TypeError:\n        return True\n"
    "    except BaseException as error:\n        raise AssertionError from error\n    return False\n"
    "assert fails(1, 'a') and fails(None, 1) and not fails(1, 2)\n"
    "assert next(x for x in map(add, [1], [2])) == 3 and list(map(add, [1, 2], [3, 4])) == [4, 6]\n",
    "a class of tests": "import unittest, copy\n"
    "class Tests(unittest.TestCase):\n    def test_add(self):\n"
    "        items = [1]\n        self.assertEqual(add(items, [2]), [1, 2])\n"
    "        self.assertEqual(items, [1])\n"
    "        self.assertAlmostEqual(add(0.1, 0.2), 0.3)\n        self.assertTrue(add(1, 1) == 2)\n"
    "result = unittest.TestResult()\nunittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)\n"
    "assert result.testsRun == 1 and result.wasSuccessful(), result\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS) as sandbox:
        yield sandbox


def passed(sandbox, programs):
    """The names of those that pass."""
    names = list(programs)
    return [names[at] for at, verdict in sandbox.run(programs.values()) if verdict.passed]


@pytest.mark.parametrize("text", TEXTS)
def test_a_right_program_passes_each_text(sandbox, text):
    verdict = sandbox.submit(Program("def add(a, b): return a + b", TEXTS[text])).result()
    assert verdict.passed, verdict


@pytest.mark.parametrize("text", TEXTS)
def test_no_forgery_passes_tests_of_any_kind(sandbox, text):
    programs = {name: Program(of("add"), TEXTS[text]) for name, of in FORGERIES.items()}
    assert passed(sandbox, programs) == []


@pytest.mark.slow  # a minute each: bombs end by their time limit
@pytest.mark.parametrize("text", TEXTS)
def test_no_hostile_program_passes_tests_of_any_kind(sandbox, text, tmp_path):
    (tmp_path / "secret").write_text("x")
    hostile = filled(str(tmp_path / "secret"), str(tmp_path), 9, str(tmp_path / "socket"))
    assert len(hostile) + len(FORGERIES) >= 150
    if "pid-namespace" not in sandbox.isolation.reached:
        pytest.skip("without namespaces bombs would go off in the tests' own user")
    assert passed(sandbox, {name: Program(text_, TEXTS[text]) for name, text_ in hostile.items()}) == []


def forged(problems):
    programs = {}
    for at, problem in enumerate(problems):
        program = problem.program(problem.reference)
        entry = program.cases.entry_point if program.cases else program.entry_points[0]
        for name, of in FORGERIES.items():
            if name not in STUCK or at % 100 == 0:
                programs[problem.id, name] = replace(program, source=of(entry))
    return programs


@pytest.mark.parametrize("task", FILES)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 60])
def test_no_forgery_passes_the_real_tests_of_a_benchmark(sandbox, task, step):
    if not (DATA / FILES[task]).exists():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    problems, _ = find([task])[0].load(DATA / FILES[task])
    found = passed(sandbox, forged(problems[::step]))
    # Two problems of MBPP+ accept any answer: EvalPlus compares nothing there, or 0 is always right.
    assert {problem for problem, _ in found} <= NO_ORACLE | TRIVIAL, found


NO_ORACLE = {"Mbpp/164"}  # `are_equivalent`: EvalPlus has no oracle for it and accepts every answer
TRIVIAL: set[str] = set()

_TASK = pool._task(Program("", "assert f(1) == 'the expected value'\nassert f([2]) == {'another': 1}"))


def outcome_of(frames: list[bytes]) -> runner.Outcome:
    """What the test runner says of a candidate that sends these bytes and ends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        theirs.sendall(b"".join(frames))
        theirs.shutdown(socket.SHUT_WR)
        order = runner.Order("nonce", together=False, cpu_s=1)
        return runner.judge(Channel(ours), order, "", _TASK, lambda message: None)


def frame(document) -> bytes:
    data = json.dumps(document).encode()
    return len(data).to_bytes(4, "little") + data


def test_the_fuzzers_way_of_sending_would_pass_with_the_right_answers():
    right = [["value", None, []], ["value", {"object": 0}, []], ["value", "the expected value", []]]
    frames = [*right, ["value", {"dict": [["another", 1]]}, []]]
    assert outcome_of([frame(document) for document in frames]).kind == "passed"


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_frame_of_a_fuzzer_passes_hangs_or_breaks_the_test_runner(count):
    rng = random.Random(count)
    sent = 0
    while sent < count:
        start = [frame(["value", None, []]), frame(["value", {"object": 0}, []])][
            : rng.choice([0, 1, 2, 2, 2])
        ]
        frames = start + [fuzzed(rng) for _ in range(rng.randint(1, 6))]
        sent += len(frames)
        outcome = outcome_of(frames)
        assert outcome.kind in {*KINDS, "gone", "together"} - {"passed", "unconfirmed"}, frames


def fuzzed(rng: random.Random) -> bytes:
    """A frame: a document that nearly matches the schema, or bytes that nearly are a document."""
    document = rng.choice(
        [
            lambda: ["value", form(rng, 3), rng.choice([[], [0], [0, 0], [5], [-1], None, {}, [True]])],
            lambda: [
                "raised",
                rng.choice([*NAMES, 1, None]),
                rng.choice(["x", 7]),
                rng.choice([None, 2, "2", -1]),
            ],
            lambda: rng.choice([["missing"], ["nonce", "nonce"], ["value"], [], {}, None, "passed", 7]),
            lambda: form(rng, 4),
        ]
    )()
    data = bytearray(frame(document))
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.05:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


NAMES = (
    "int", "tuple", "tuples", "set", "frozenset", "dict", "keys", "values", "items", "bytes",
    "bytearray", "complex", "range", "decimal", "fraction", "type", "date", "time", "datetime",
    "timedelta", "deque", "counter", "ordered", "defaultdict", "record", "array", "object", "iterator",
    "value", "_value", "__class__", "StopIteration", "SystemExit", "KeyError", "exec", "t", "v",
)  # fmt: skip


def form(rng: random.Random, depth: int):
    """A form or something like one."""
    leaves = (
        None,
        True,
        0,
        -1,
        1,
        2**63,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "0x10",
        "1e999999999",
        "int",
        "<i8",
    )
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(leaves)
    items = [form(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    if rng.random() < 0.3:
        return items
    keys = [rng.choice(NAMES) for _ in range(rng.choice([1, 1, 1, 1, 2, 0]))]
    content = rng.choice([items, [items, items], [[item, item] for item in items], form(rng, depth - 1)])
    return dict.fromkeys(keys, content)
