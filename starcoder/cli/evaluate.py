"""`starcoder evaluate`: how good a model is, on benchmarks, on the user's own code, or as bits per byte."""

import hashlib
import sys
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError
from starcoder.evaluate.settings import EvaluateSettings

if TYPE_CHECKING:
    from starcoder.cli.evaluating import Models, Variant
    from starcoder.evaluate.problems import Problem
    from starcoder.evaluate.recipes import Recipe
    from starcoder.evaluate.results import About, Result
    from starcoder.evaluate.sandbox.pool import Sandbox
    from starcoder.evaluate.tasks import Task


def run(
    tasks: str | None = None,
    /,
    *,
    settings: Annotated[EvaluateSettings, Section("Measuring")] = EvaluateSettings(),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    list: bool = False,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Measure a model: pass@k on benchmarks, matches on your own code, bits per byte.

    Benchmarks run the code that the model writes, in a sandbox, and only with
    --allow-code-execution.

    $ starcoder evaluate starter --allow-code-execution
    $ starcoder evaluate humaneval --model bigcode/starcoder2-3b --n-samples 20
    --temperature 0.2 --allow-code-execution --output results/
    $ starcoder evaluate humaneval --samples samples.jsonl --allow-code-execution
    $ starcoder evaluate my-repo --repo ./src --holdout-commits 50 --compare ./adapter
    $ starcoder evaluate perplexity --dataset ./src --quantize none,int8,int4

    Args:
        tasks: Names of tasks, separated by commas; --list shows all.
        output: Folder for samples, results.json and report.html; the same command resumes a run in it.
        list: List the tasks and recipes, and which can run here.
    """
    from starcoder.cli import evaluating, evaluation_tables

    printed.start_logging()
    if list:
        print(evaluation_tables.listing(as_json=printed.json))
        return
    names = [name for name in (tasks or "").split(",") if name]
    if not names:
        raise ConfigError("no task is named", "`starcoder evaluate --list` names them all")
    models = evaluating.Models(settings)
    if names == ["perplexity"]:
        evaluating.perplexity(settings, models, as_json=printed.json)
        return
    start = perf_counter()
    with ExitStack() as stack:
        results = [*_results(names, settings, models, stack, output)]
    evaluation_tables.report(results, output, as_json=printed.json, seconds=perf_counter() - start)


def _results(
    names: Sequence[str],
    settings: EvaluateSettings,
    models: "Models",
    stack: ExitStack,
    output: Path | None,
) -> Iterator["Result"]:
    """Each task with each model. One sandbox serves them all, one model is in memory at a time."""
    from starcoder.evaluate import repository_tests, samples
    from starcoder.evaluate.results import About
    from starcoder.evaluate.tasks import MY_REPO, find

    tasks = find([name for name in names if name != MY_REPO])
    _check(names, tasks, settings)
    recipe = _recipe(settings)
    loaded = [_problems(task, settings) for task in tasks]
    is_tested = MY_REPO in names and settings.test_command is not None
    packages: list[Path] = []
    if MY_REPO in names:
        loaded.append(_own_problems(settings, stack, packages))
    is_executed = is_tested or any(task.is_executed for task in tasks)
    judge = _sandbox(settings, stack, packages) if is_executed else None
    if is_tested and judge is not None:
        repository_tests.check(loaded[-1][1], judge)
    for variant in models.variants():
        for name, problems, max_tokens, sha256, origin in loaded:
            about = About(
                task=name,
                model=variant.name,
                recipe=recipe,
                data_sha256=sha256,
                data_origin=origin,
                seed=settings.ask.seed,
                limit=settings.limit,
                quantize=variant.quantize or "none",
                dtype=models.dtype(recipe),
                samples_sha256="" if settings.samples is None else samples.sha256(settings.samples),
            )
            yield _result(about, problems, max_tokens, settings, models, variant, judge, output)


def _result(
    about: "About",
    problems: Sequence["Problem"],
    max_tokens: int,
    settings: EvaluateSettings,
    models: "Models",
    variant: "Variant",
    judge: "Sandbox | None",
    output: Path | None,
) -> "Result":
    from starcoder.cli.evaluating import ProgressBar, begin
    from starcoder.evaluate import run, samples
    from starcoder.evaluate.results import Result
    from starcoder.evaluate.sandbox.verdicts import Verdict

    if settings.samples is None:
        asked = [about.recipe.asked(one, max_tokens=max_tokens, seed=settings.ask.seed) for one in problems]
    else:
        asked = list(problems)  # others' completions continue the task's own prompt
    is_executed = any(problem.check is not None for problem in asked)
    start = perf_counter()
    log = begin(output, about)
    with ProgressBar(f"{about.task}, {variant.label}") as progress:
        if judge is not None and is_executed and not judge.available(_language(asked[0])):
            nothing = Verdict("unavailable", f"no tool-chain for {_language(asked[0])}")
            judged = [samples.Sample(problem=one.id, text="", verdict=nothing) for one in asked]
        elif settings.samples is not None:
            given = samples.read(settings.samples, [problem.id for problem in asked])
            is_partial = settings.judge.partial
            judged = run.judge_samples(asked, given, judge, is_partial=is_partial, log=log, progress=progress)
        else:
            generator = models.generator(variant, about.recipe)
            judged = run.run(asked, generator, judge, log=log, progress=progress)
    return Result(
        about=about,
        problems=tuple(asked),
        samples=tuple(judged),
        isolation=judge.isolation if judge is not None and is_executed else None,
        seconds=perf_counter() - start,
        ks=settings.judge.k,
        accepts_unconfirmed=settings.judge.accept_unconfirmed,
    )


def _language(problem: "Problem") -> str:
    """Of the program that judges an answer, which may be another than the answer's own."""
    program = problem.program("")
    assert program is not None, "the task is executed"
    return program.language


def _check(names: Sequence[str], tasks: Sequence["Task"], settings: EvaluateSettings) -> None:
    executed = [task.name for task in tasks if task.is_executed]
    if settings.test_command is not None:
        executed.append("--test-command")
    if executed and not settings.judge.allow_code_execution:
        raise ConfigError(
            f"{executed[0]} runs programs that a model wrote",
            "add --allow-code-execution; they run in a sandbox, see docs/evaluation.md",
        )
    if len(names) > 1 and (settings.dataset or settings.samples):
        raise ConfigError("--dataset and --samples belong to one task", "give one task with them")


def _recipe(settings: EvaluateSettings) -> "Recipe":
    from starcoder.evaluate import recipes

    recipe = recipes.named(settings.ask.recipe)
    given = {
        "n": settings.ask.n_samples,
        "temperature": settings.ask.temperature,
        "top_p": settings.ask.top_p,
        "max_tokens": settings.ask.max_tokens,
        "layout": settings.ask.layout,
    }
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if recipe.n > 1 and recipe.temperature == 0 and settings.samples is None:
        raise ConfigError(
            f"{recipe.n} samples at temperature 0 are all the same",
            "set --temperature, as in --temperature 0.2",
        )
    return recipe


_Loaded = tuple[str, Sequence["Problem"], int, str, str]  # name, problems, max_tokens, checksum, origin


def _problems(task: "Task", settings: EvaluateSettings) -> _Loaded:
    problems, data = task.load(settings.dataset)
    return task.name, problems[: settings.limit], task.max_tokens, data.sha256, data.origin


def _own_problems(settings: EvaluateSettings, stack: ExitStack, packages: MutableSequence[Path]) -> _Loaded:
    """Problems of the user's repository; adds to `packages` what its tests need to see."""
    from starcoder.evaluate import repository, repository_tests
    from starcoder.evaluate.tasks import MY_REPO

    files = repository.read(settings.repo, holdout_commits=settings.holdout_commits)
    problems = repository.cut(
        files, repo=settings.repo.resolve().name, limit=settings.limit or 100, seed=settings.ask.seed
    )
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.id}\0{problem.code(problem.reference)}\0".encode())
    if settings.test_command is not None:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="starcoder-my-repo-")))
        folder.chmod(0o755)  # the programs run as another user
        is_at_head = settings.holdout_commits is not None
        copied = repository_tests.copy(settings.repo, folder / "repository", is_at_head=is_at_head)
        packages += [folder, Path(sys.prefix)]
        problems = tuple(
            repository_tests.with_tests(problems, copied, settings.test_command, path=[Path(sys.prefix)])
        )
    # 0: each kind of place has its own number of tokens.
    return MY_REPO, problems, 0, digest.hexdigest(), str(settings.repo)


def _sandbox(settings: EvaluateSettings, stack: ExitStack, packages: MutableSequence[Path]) -> "Sandbox":
    from starcoder.evaluate.sandbox.pool import Sandbox
    from starcoder.evaluate.sandbox.verdicts import Limits

    limits = Limits()
    if settings.test_command is not None:
        limits = Limits(timeout_s=60, cpu_s=120, memory_bytes=4 << 30, file_bytes=256 << 20, processes=64)
    if settings.judge.timeout_s is not None:
        seconds = max(limits.cpu_s, ceil(2 * settings.judge.timeout_s))
        limits = replace(limits, timeout_s=settings.judge.timeout_s, cpu_s=seconds)
    sandbox = stack.enter_context(
        Sandbox(
            workers=settings.judge.workers,
            limits=limits,
            driver=settings.judge.sandbox,
            packages=[*packages, *settings.judge.package],
            accept_missing=settings.judge.accept_missing,
        )
    )
    if sandbox.isolation.missing:
        missing = ", ".join(sandbox.isolation.missing)
        print(f"running without these isolation layers: {missing}", file=sys.stderr)
    return sandbox
