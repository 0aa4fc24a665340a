"""One task with one model: answers through a generator, judged while the next are made, kept as they come.

Each problem has a seed of its own, so its samples are the same whatever is asked beside it, and a run that
was killed goes on to the same result: problems whose samples are all in the log are not asked again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from starcoder.errors import ConfigError
from starcoder.evaluate import samples as samples_file
from starcoder.evaluate.matching import compared
from starcoder.evaluate.problems import Problem
from starcoder.evaluate.samples import Key, Log, Sample
from starcoder.evaluate.sandbox.verdicts import Program, Verdict
from starcoder.request import Chunk, Generator

Progress = Callable[[int, int], None]  # samples judged, samples in all


class Judge(Protocol):
    """Runs programs; `sandbox.pool.Sandbox` is one."""

    def submit(self, program: Program) -> "Future[Verdict]": ...


def run(
    problems: Sequence[Problem],
    generator: Generator,
    judge: Judge | None,
    *,
    log: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Sample]:
    """All samples of all problems, judged, in the problems' order.

    `problems` are as a recipe puts them. With `log` samples are kept in that file as they come, and those it
    has are taken from it. `judge` may be None where answers are compared.

    Raises:
        ConfigError: the log has samples of other problems.
        RequestError: the model cannot be asked this.
    """
    kept = {} if log is None or not log.exists() else _kept(log, problems)
    file = None if log is None else Log(log)
    total = sum(problem.request.sampling.n for problem in problems)
    judging = _Judging(problems, judge, file, progress=lambda done: progress(done, total))
    try:
        for sample in kept.values():
            judging.take(sample)
        todo = [problem for problem in problems if not _is_whole(problem, kept)]
        for sample in _generated(todo, generator):
            if sample.key not in kept:
                if file is not None:
                    file.add(sample)
                judging.take(sample)
        judged = judging.finish()
        if file is not None:
            file.finish(judged)
    finally:
        if file is not None:
            file.close()
    return judged


def judge_samples(
    problems: Sequence[Problem],
    samples: Sequence[Sample],
    judge: Judge | None,
    *,
    is_partial: bool = False,
    log: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Sample]:
    """Judge anybody's samples; verdicts they bring are not believed. `problems` are as their task has them.

    With `log` verdicts are kept in that file as they come, and those it has are taken from it.

    Raises:
        ConfigError: a sample of a problem that is not among these, or a problem without a sample unless
            `is_partial`.
    """
    if not samples:
        raise ConfigError("there are no samples", "each line of the file is one sample")
    _check_known(problems, samples)
    asked = {sample.problem for sample in samples}
    missing = [problem.id for problem in problems if problem.id not in asked]
    if missing and not is_partial:
        raise ConfigError(
            f"{len(missing)} of {len(problems)} problems have no sample, the first is {missing[0]!r}",
            "--partial scores those that have one; --limit takes the first problems alone",
        )
    kept = {} if log is None or not log.exists() else _kept(log, problems)
    file = None if log is None else Log(log)
    judging = _Judging(problems, judge, file, progress=lambda done: progress(done, len(samples)))
    try:
        for sample in samples:
            known = kept.get(sample.key)
            if known is not None and known.text == sample.text:
                judging.take(known)
                continue
            sample = replace(sample, verdict=None, scores={})
            if file is not None and known is None:
                file.add(sample)
            judging.take(sample)
        judged = judging.finish()
        if file is not None:
            file.finish(judged)
    finally:
        if file is not None:
            file.close()
    return judged


class _Judging:
    """Samples on their way to a verdict; those that have one are ready at once."""

    def __init__(
        self,
        problems: Sequence[Problem],
        judge: Judge | None,
        log: Log | None,
        *,
        progress: Callable[[int], None],
    ):
        self._problems = {problem.id: problem for problem in problems}
        self._judge, self._log, self._progress = judge, log, progress
        self._pending: dict[Future[Verdict], list[Sample]] = {}  # equal programs share a future
        self._done: dict[Key, Sample] = {}

    def take(self, sample: Sample) -> None:
        problem = self._problems[sample.problem]
        if sample.verdict is not None or (problem.check is None and sample.scores):
            self._keep(sample, is_new=False)
        elif problem.check is None:
            self._keep(replace(sample, scores=compared(problem, sample.text)), is_new=True)
        else:
            if problem.is_compared:
                sample = replace(sample, scores=compared(problem, sample.text))
            assert self._judge is not None, "tasks whose answers are run come with a sandbox"
            code = sample.text if sample.is_whole else problem.code(sample.text)
            self._pending.setdefault(self._judge.submit(problem.check(code)), []).append(sample)
        self._collect([future for future in self._pending if future.done()])

    def finish(self) -> list[Sample]:
        """Wait for every verdict; samples in the order of the problems and of their numbers."""
        while self._pending:
            done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
            self._collect(done)
        order = {name: at for at, name in enumerate(self._problems)}
        return sorted(self._done.values(), key=lambda sample: (order[sample.problem], sample.index))

    def _collect(self, futures: Iterable[Future[Verdict]]) -> None:
        for future in futures:
            for sample in self._pending.pop(future):
                self._keep(replace(sample, verdict=future.result()), is_new=True)

    def _keep(self, sample: Sample, *, is_new: bool) -> None:
        self._done[sample.key] = sample
        if is_new and self._log is not None:
            self._log.judged(sample)
        self._progress(len(self._done))


def _generated(problems: Sequence[Problem], generator: Generator) -> Iterator[Sample]:
    """Every sample as it ends. All problems are handed over at once: the generator shares its batches."""
    parts: dict[tuple[str, int], list[Chunk]] = {}
    for chunk in generator.generate([problem.request for problem in problems]) if problems else ():
        key = chunk.request_id, chunk.index
        parts.setdefault(key, []).append(chunk)
        if chunk.finish_reason is not None:
            chunks = parts.pop(key)
            num_tokens = sum(len(part.tokens) for part in chunks)
            yield Sample(
                problem=problems[int(chunk.request_id)].id,
                index=chunk.index,
                text="".join(part.text for part in chunks),
                finish_reason=chunk.finish_reason,
                num_tokens=num_tokens or None,
            )


def _kept(log: Path, problems: Sequence[Problem]) -> dict[Key, Sample]:
    """Samples of an earlier run. A problem with some missing is asked again: they come out the same."""
    samples = samples_file.read_log(log)
    _check_known(problems, samples)
    return {sample.key: sample for sample in samples}


def _is_whole(problem: Problem, kept: dict[Key, Sample]) -> bool:
    return all((problem.id, index) in kept for index in range(problem.request.sampling.n))


def _check_known(problems: Sequence[Problem], samples: Sequence[Sample]) -> None:
    known = {problem.id for problem in problems}
    for sample in samples:
        if sample.problem not in known:
            raise ConfigError(
                f"there is a sample of {sample.problem!r}, which is no problem of this run",
                "are the samples of this task, and was --limit the same?",
            )
