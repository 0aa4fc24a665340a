"""Scores of an evaluation: pass@k, confidence intervals, failures by kind, and whether two runs differ."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import Kind, Verdict

_TAIL, _Z = 0.025, 1.959963984540054  # of 95 %
_FEW = 50  # problems: below, Wilson's interval covers 92.5 % of some shares
_ROWS = 512  # resamples at a time: bounds memory for long runs


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs over the same problems: second minus first with its interval, p, and what flipped.

    `gained` and `lost` are the positions of the problems whose score rose and fell.
    """

    difference: Interval
    p_value: float
    test: str
    gained: tuple[int, ...]
    lost: tuple[int, ...]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased estimate of the chance that one of `k` samples passes, from `num_samples` of them.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1, as the product
    `1 - prod(1 - k / i)` for i in n-c+1..n, whose factors neither overflow nor cancel.

    Raises:
        ConfigError: `k` is not between 1 and `num_samples`, or there are more passes than samples.
    """
    if not 1 <= k <= num_samples:
        raise ConfigError(f"pass@{k} of {num_samples} samples; expected k from 1 to the number of samples")
    if not 0 <= num_correct <= num_samples:
        raise ConfigError(f"{num_correct} of {num_samples} samples are correct; expected no more than all")
    none_passes = 1.0
    for drawn in range(num_samples - num_correct + 1, num_samples + 1):
        none_passes *= max(0.0, 1.0 - k / drawn)
    return 1.0 - none_passes


def interval(scores: Sequence[float]) -> Interval:
    """The mean over problems and its 95 % confidence interval.

    Scores of 0 and 1 alone (one sample of each problem) are a proportion; others are resampled, and where all
    are equal, which resampling cannot see beyond, they are treated as a proportion too.

    Raises:
        ConfigError: there are no scores.
    """
    if scores and ({*scores} <= {0, 1} or len({*scores}) == 1):
        return proportion(math.fsum(scores), len(scores))
    return bootstrap(scores)


def proportion(num_passed: float, num_problems: int) -> Interval:
    """A share of problems and its 95 % confidence interval.

    Below 50 problems Clopper and Pearson's with half the weight on the observed count (mid-p), which covers
    at least 93 % of true shares from 0.02 to 0.98 at 20 problems; from 50 on Wilson's.

    Source: Agresti and Coull 1998, "Approximate is better than 'exact' for interval estimation of binomial
    proportions".
    """
    share = num_passed / num_problems
    if num_problems < _FEW and num_passed == int(num_passed):
        return Interval(share, *_mid_p(int(num_passed), num_problems))
    spread = _Z**2 / num_problems
    center = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / num_problems + spread / (4 * num_problems)) / (1 + spread)
    return Interval(share, max(0.0, center - half), min(1.0, center + half))


def _mid_p(num_passed: int, num_problems: int) -> tuple[float, float]:
    """The shares at which 2.5 % lie beyond the observed count, half of the count itself included."""

    def beyond(share: float) -> float:
        terms = [
            math.comb(num_problems, k) * share**k * (1 - share) ** (num_problems - k)
            for k in range(num_passed, num_problems + 1)
        ]
        return math.fsum(terms[1:]) + terms[0] / 2

    low = 0.0 if num_passed == 0 else _rising_to(beyond, _TAIL)
    return low, 1.0 if num_passed == num_problems else _rising_to(beyond, 1 - _TAIL)


def _rising_to(function: Callable[[float], float], value: float) -> float:
    """Where a rising function of a share reaches `value`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > value else (middle, high)
    return (low + high) / 2


def bootstrap(
    scores: Sequence[float], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """The mean over problems and its percentile bootstrap interval: problems are drawn again, not samples.

    One problem, or none that differs, has an interval of no width: the bootstrap sees only what was measured.

    Raises:
        ConfigError: there are no scores.
    """
    if not scores:
        raise ConfigError("there are no scores to average")
    values = np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            values[generator.integers(len(values), size=(rows, len(values)))].mean(axis=1)
            for rows in _chunks(resamples)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def failures(verdicts: Iterable[Verdict]) -> Mapping[Kind, int]:
    """How many verdicts there are of each kind that is no pass, most frequent first."""
    return dict(Counter(verdict.kind for verdict in verdicts if not verdict.passed).most_common())


def compare(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0, resamples: int = 10_000
) -> Comparison:
    """Two runs' scores, problem by problem, and the chance of such a difference if there were none.

    When every score is 0 or 1 the test is McNemar's in its exact, binomial form. Otherwise the signs of the
    differences are flipped at random; p counts the observed one among the resamples, so it is never 0.

    Raises:
        ConfigError: the runs are empty or of different lengths.
    """
    if len(first) != len(second):
        raise ConfigError(f"the runs have {len(first)} and {len(second)} problems; expected the same ones")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    gained = tuple(index for index, difference in enumerate(differences) if difference > 0)
    lost = tuple(index for index, difference in enumerate(differences) if difference < 0)
    if {*first, *second} <= {0, 1}:
        test, p_value = "exact McNemar", _mcnemar(len(gained), len(lost))
    else:
        test, p_value = "sign flips", _sign_flips(differences, seed=seed, resamples=resamples)
    interval = bootstrap(differences, seed=seed, resamples=resamples)
    return Comparison(interval, p_value, test, gained, lost)


def _mcnemar(gained: int, lost: int) -> float:
    """Two-sided: of all that flipped, as many or fewer went the rarer way, by a fair coin."""
    flipped = gained + lost
    tail = sum(math.comb(flipped, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**flipped)) if flipped else 1.0


def _sign_flips(differences: Sequence[float], *, seed: int, resamples: int) -> float:
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # A sum of the same numbers in another order may differ in its last bits.
    observed = abs(values.sum()) * (1 - 1e-12)
    as_extreme = 0
    for rows in _chunks(resamples):
        signs = 1 - 2 * generator.integers(2, size=(rows, len(values)))
        as_extreme += int((abs(signs @ values) >= observed).sum())
    return (1 + as_extreme) / (1 + resamples)


def _chunks(resamples: int) -> list[int]:
    return [min(_ROWS, resamples - start) for start in range(0, resamples, _ROWS)]
