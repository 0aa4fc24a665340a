"""Scores equal the published formulas, repeat by seed, and call a difference by its chance."""

import math
import random
import statistics
from fractions import Fraction

import numpy as np
import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import Verdict
from starcoder.evaluate.scores import bootstrap, compare, failures, interval, pass_at_k, proportion


def test_pass_at_k_equals_the_published_formula_on_random_counts():
    chance = random.Random(0)
    for _ in range(300):
        n = chance.randint(1, 400)
        c, k = chance.randint(0, n), chance.randint(1, n)
        # Chen et al. 2021, equation 1, in exact arithmetic
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_k_equals_the_numpy_form_of_the_paper():
    def published(n, c, k):
        return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))

    for n, c, k in [(200, 13, 1), (200, 13, 10), (200, 13, 100), (20, 0, 10), (20, 20, 1), (20, 11, 10)]:
        assert pass_at_k(n, c, k) == pytest.approx(published(n, c, k), abs=1e-14)


def test_pass_at_1_is_the_share_of_correct_samples():
    assert pass_at_k(20, 7, 1) == pytest.approx(0.35)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 1, 0), (5, 6, 1), (5, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ConfigError):
        pass_at_k(n, c, k)


def covered(num_problems, share):
    """The chance that the interval of a binomial count has the true share in it, exactly."""
    chances = [
        math.comb(num_problems, k) * share**k * (1 - share) ** (num_problems - k)
        for k in range(num_problems + 1)
    ]
    intervals = [proportion(k, num_problems) for k in range(num_problems + 1)]
    return sum(chance for chance, one in zip(chances, intervals, strict=True) if one.low <= share <= one.high)


@pytest.mark.parametrize("num_problems", [20, 164])
def test_intervals_of_proportions_cover_every_true_share(num_problems):
    found = [covered(num_problems, at / 100) for at in range(2, 99)]
    assert min(found) >= 0.93
    if num_problems == 164:
        assert max(found) <= 0.97
    else:  # at 20 problems single counts have more than 4 %: only in the middle can coverage stay below
        assert 0.94 <= sum(found) / len(found) <= 0.97


def test_intervals_of_proportions_agree_with_published_ones():
    assert proportion(0, 20).low == 0.0 and proportion(20, 20).high == 1.0
    assert proportion(0, 20).high == pytest.approx(1 - 0.05 ** (1 / 20), abs=1e-3)  # 0.025 = half of P(0)
    wilson = proportion(81, 263)  # Wilson without continuity correction, Newcombe 1998, table I
    assert (wilson.low, wilson.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.parametrize(("num_problems", "share"), [(20, 0.3), (164, 0.1), (164, 0.5)])
def test_bootstrap_intervals_cover_the_true_mean_of_fractions(num_problems, share):
    """Five samples a problem, each problem with a chance of its own."""
    rng, num_covered, draws = random.Random(1), 0, 700
    for seed in range(draws):
        chances = [min(1.0, 2 * share * rng.random()) for _ in range(num_problems)]
        scores = [sum(rng.random() < chance for _ in range(5)) / 5 for chance in chances]
        found = bootstrap(scores, seed=seed, resamples=600)
        num_covered += found.low <= share <= found.high
    assert 0.93 <= num_covered / draws + (0.015 if num_problems == 20 else 0) <= 0.975


def test_bootstrap_interval_is_as_wide_as_the_normal_one_of_many_problems():
    """Of 95 %: one of 90 % is narrower by 16 %."""
    rng = random.Random(3)
    scores = [rng.random() for _ in range(2000)]
    found = bootstrap(scores)
    half = 1.96 * statistics.stdev(scores) / math.sqrt(len(scores))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)


def test_scores_of_one_sample_are_a_proportion_and_equal_ones_have_a_width():
    assert interval([1.0, 0.0, 0.0, 1.0]) == proportion(2, 4)
    assert interval([1.0] * 20).low == pytest.approx(0.86, abs=0.01)
    assert interval([0.5] * 20).low < 0.35 < 0.65 < interval([0.5] * 20).high
    assert interval([0.0, 0.5, 1.0]) == bootstrap([0.0, 0.5, 1.0])


def test_bootstrap_repeats_by_seed_and_has_the_plain_mean():
    scores = [0.0, 1.0, 0.5, 0.25] * 10
    assert bootstrap(scores, seed=3) == bootstrap(scores, seed=3)
    assert bootstrap(scores, seed=3).mean == pytest.approx(0.4375)
    assert bootstrap([1.0] * 5).low == bootstrap([1.0] * 5).high == 1.0


def test_no_scores_are_refused():
    with pytest.raises(ConfigError, match="no scores"):
        bootstrap([])


def test_failures_are_counted_by_kind_most_frequent_first():
    verdicts = [Verdict(kind) for kind in ("passed", "timeout", "assertion", "assertion", "passed")]
    assert list(failures(verdicts).items()) == [("assertion", 2), ("timeout", 1)]


def test_mcnemar_is_the_exact_binomial_test():
    # 8 gained, 1 lost: 2 * (C(9,0) + C(9,1)) / 2**9
    first = [0] * 8 + [1] + [1] * 20
    second = [1] * 8 + [0] + [1] * 20
    outcome = compare(first, second)
    assert outcome.test == "exact McNemar"
    assert outcome.p_value == pytest.approx(20 / 512)
    assert (outcome.gained, outcome.lost) == (tuple(range(8)), (8,))
    assert outcome.difference.mean == pytest.approx(7 / 29)


def test_equal_runs_do_not_differ():
    assert compare([0, 1, 1], [0, 1, 1]).p_value == 1.0
    assert compare([0.5, 0.2], [0.5, 0.2]).p_value == 1.0


def test_sign_flips_agree_with_all_flips_counted():
    first = [0.1, 0.4, 0.3, 0.0, 0.2, 0.5, 0.6, 0.1]
    second = [0.3, 0.6, 0.2, 0.4, 0.3, 0.9, 0.6, 0.5]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    sums = [
        abs(sum(d if mask >> i & 1 else -d for i, d in enumerate(differences)))
        for mask in range(2 ** len(differences))
    ]
    exact = sum(s >= abs(sum(differences)) - 1e-12 for s in sums) / len(sums)
    assert compare(first, second).p_value == pytest.approx(exact, abs=0.01)  # 10,000 of the 256 flips


def test_runs_over_different_problems_are_refused():
    with pytest.raises(ConfigError, match="3 and 2 problems"):
        compare([0, 1, 1], [0, 1])
