"""Scores of an evaluation: pass@k, confidence intervals, failures by kind, and whether two runs differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from starcoder.evaluate.sandbox.verdicts import Kind, Verdict


@dataclass(frozen=True, slots=True)
class Interval:
    """A score and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same problems: mean difference (second minus first), its interval, p, what flipped."""

    difference: Interval
    p_value: float
    gained: tuple[int, ...]
    lost: tuple[int, ...]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased estimate of the chance that one of `k` samples passes, from `num_samples` of them."""
    raise NotImplementedError


def bootstrap(
    scores: Sequence[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean over problems and its percentile bootstrap interval."""
    raise NotImplementedError


def failures(verdicts: Iterable[Verdict]) -> Mapping[Kind, int]:
    """How many verdicts there are of each kind that is no pass, most frequent first."""
    raise NotImplementedError


def compare(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> Comparison:
    """Two runs' scores, problem by problem: exact McNemar when all are 0 or 1, a sign-flip test otherwise."""
    raise NotImplementedError
