"""One seed, one result: whatever the batch, after a kill at any moment, and with samples from elsewhere."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from starcoder.engine import local
from starcoder.engine.settings import EngineSettings
from starcoder.errors import ConfigError
from starcoder.evaluate import run, samples
from starcoder.evaluate.recipes import named
from starcoder.evaluate.samples import Sample
from starcoder.evaluate.tasks import find
from tests.evaluate.judging import PlainJudge

RECIPE = replace(named("bigcode"), n=3, max_tokens=12)
SAFE = "    return None\n"  # what the judge sees instead of what a model wrote


class Harmless(PlainJudge):
    """Runs nothing: a verdict by the program's text."""

    def submit(self, program):
        return super().submit(replace(program, source="", tests=f"assert {len(program.source) % 2}"))


@pytest.fixture(scope="module")
def own():
    """Problems as their task has them."""
    [task] = find(["starter"])
    return task.load()[0][:6]


@pytest.fixture(scope="module")
def problems(own):
    return [RECIPE.asked(problem, max_tokens=128, seed=7) for problem in own]


def generator(**settings):
    return local.load(settings=EngineSettings(**settings)) if settings else local.load()


@pytest.fixture(scope="module")
def whole(problems):
    return run.run(problems, generator(), Harmless())


def test_every_problem_has_all_its_samples_in_order(problems, whole):
    assert [sample.key for sample in whole] == [(one.id, index) for one in problems for index in range(3)]
    assert all(sample.verdict is not None and sample.num_tokens for sample in whole)
    assert len({sample.text for sample in whole}) > len(problems)


@pytest.mark.parametrize("settings", [{"max_sequences": 1}, {"max_sequences": 5, "max_step_tokens": 64}])
def test_results_do_not_depend_on_the_batch(problems, whole, settings):
    assert run.run(problems, generator(**settings), Harmless()) == whole


def test_a_problem_asked_alone_has_the_same_samples(problems, whole):
    assert run.run(problems[3:4], generator(), Harmless()) == whole[9:12]


class Dying:
    """Passes on so many chunks, then is gone as if killed."""

    def __init__(self, inner, num_chunks):
        self.inner, self.left = inner, num_chunks

    def generate(self, requests):
        for chunk in self.inner.generate(requests):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield chunk


def test_a_run_that_broke_off_goes_on_to_the_same_result(problems, whole, tmp_path):
    log, inner = tmp_path / "a.jsonl", generator(max_sequences=4)
    for num_chunks in (0, 30, 60):
        with pytest.raises(KeyboardInterrupt):
            run.run(problems, Dying(inner, num_chunks), Harmless(), log=log)
    assert 0 < len(samples.read(log)) < len(whole)
    log.write_text(log.read_text() + '{"task_id": "Starter/5", "sam')  # a line torn by the kill
    assert run.run(problems, inner, Harmless(), log=log) == whole
    assert samples.read(log) == whole


def test_a_finished_run_asks_nobody(problems, whole, tmp_path):
    log, judge = tmp_path / "a.jsonl", Harmless()
    samples.write(log, whole)
    assert run.run(problems, Dying(None, 0), judge, log=log) == whole
    assert judge.programs == []


KILLED = """
import sys
from pathlib import Path
from tests.evaluate import test_run as t
from starcoder.evaluate import run
from starcoder.evaluate.tasks import find
loaded, _ = find(["starter"])[0].load()
problems = [t.RECIPE.asked(problem, max_tokens=128, seed=7) for problem in loaded[:6]]
run.run(problems, t.generator(max_sequences=2), t.Harmless(), log=Path(sys.argv[1]))
"""


def test_kill_minus_nine_loses_nothing_that_was_written(problems, whole, tmp_path):
    log = tmp_path / "a.jsonl"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(log)])
    until = time.monotonic() + 120
    while (not log.exists() or log.read_text().count("\n") < 4) and time.monotonic() < until:
        assert child.poll() in (None, 0)
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert run.run(problems, generator(), Harmless(), log=log) == whole


def test_equal_programs_all_get_their_verdict(own):
    given = [Sample(problem=own[0].id, index=index, text=SAFE) for index in range(4)]
    shared = PlainJudge().submit(own[0].program(SAFE))

    class Sharing:
        def submit(self, program):
            return shared

    judged = run.judge_samples(own, given, Sharing(), is_partial=True)
    assert [sample.verdict.kind for sample in judged] == ["assertion"] * 4


def test_samples_of_human_eval_and_evalplus_are_judged(own, tmp_path):
    first, second = own[:2]
    rows = [
        {"task_id": first.id, "completion": first.reference},
        {"task_id": second.id, "solution": second.code(second.reference)},
        {"task_id": first.id, "completion": SAFE, "passed": True},
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = run.judge_samples(own[:2], samples.read(file), PlainJudge())
    assert [(one.problem, one.index, one.verdict.passed) for one in judged] == [
        (first.id, 0, True),
        (first.id, 1, False),
        (second.id, 0, True),
    ]
    folder = tmp_path / "folder"
    place = folder / first.id.replace("/", "_")
    place.mkdir(parents=True)
    (place / "0.py").write_text(first.code(first.reference))
    assert run.judge_samples(own[:1], samples.read(folder), PlainJudge())[0].verdict.passed


@pytest.mark.parametrize("line", ["[]", "{}", '{"task_id": "a"}', "{"])
def test_what_is_no_sample_is_refused(line, tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"1 is not a JSON object|without task_id"):
        samples.read(file)


def test_samples_of_another_task_are_refused(own):
    with pytest.raises(ConfigError, match="no problem of this run"):
        run.judge_samples(own, [Sample(problem="HumanEval/0", text="")], PlainJudge())


def test_a_problem_without_a_sample_is_a_mistake_unless_the_file_is_partial(own):
    given = [Sample(problem=own[1].id, text=own[1].reference)]
    with pytest.raises(ConfigError, match="5 of 6 problems have no sample") as caught:
        run.judge_samples(own, given, PlainJudge())
    assert "--partial" in caught.value.hint
    assert len(run.judge_samples(own, given, PlainJudge(), is_partial=True)) == 1
    with pytest.raises(ConfigError, match="no samples"):
        run.judge_samples(own, [], PlainJudge(), is_partial=True)


def test_the_same_sample_twice_is_refused(own, tmp_path):
    file = tmp_path / "samples.jsonl"
    samples.write(file, [Sample(problem=own[0].id, index=index, text=SAFE) for index in (0, 1, 0)])
    with pytest.raises(ConfigError, match=r"has sample 0 of .* twice"):
        samples.read(file)


def test_of_a_completion_and_a_solution_the_solution_counts(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({"task_id": "a", "completion": "x", "solution": "y"}))
    [sample] = samples.read(file)
    assert (sample.text, sample.is_whole) == ("y", True)


ODD = "a\u2028b\u2029c\u0085d\x1ce\x0bf\ud800"


def test_any_text_is_written_read_and_judged_again_from_a_log(own, tmp_path):
    file, log = tmp_path / "samples.jsonl", tmp_path / "log.jsonl"
    given = [Sample(problem=problem.id, text=f"    return {ODD!r}  # {ODD}\n") for problem in own]
    samples.write(file, given)
    packed = tmp_path / "samples.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert [one.text for one in samples.read(file)] == [one.text for one in given]
    assert samples.read(packed) == samples.read(file)
    judged = run.judge_samples(own, samples.read(file), PlainJudge(), log=log)
    assert samples.read(log) == judged

    class Refusing:
        def submit(self, program):
            raise AssertionError("its verdict is in the log")

    assert run.judge_samples(own, samples.read(file), Refusing(), log=log) == judged


def test_the_generations_of_bigcodes_harness_are_read_in_the_order_of_the_problems(own, tmp_path):
    file = tmp_path / "generations.json"
    whole = [problem.code(problem.reference) for problem in own]
    file.write_text(json.dumps([[text, "1 / 0"] for text in whole]))
    judged = run.judge_samples(own, samples.read(file, [problem.id for problem in own]), PlainJudge())
    assert [one.verdict.passed for one in judged] == [True, False] * len(own)
    with pytest.raises(ConfigError, match="answers to 6 problems; expected at most 2"):
        samples.read(file, ["a", "b"])
    file.write_text("{}")
    with pytest.raises(ConfigError, match="not a list of lists"):
        samples.read(file, ["a"])
