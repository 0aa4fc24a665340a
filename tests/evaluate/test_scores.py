"""Scores equal the published formulas, repeat by seed, and call a difference by its chance."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import Verdict
from starcoder.evaluate.scores import bootstrap, compare, failures, pass_at_k


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


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    chance = random.Random(1)
    covered = 0
    for seed in range(200):
        scores = [float(chance.random() < 0.3) for _ in range(164)]
        interval = bootstrap(scores, seed=seed, resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99  # 95 % less what 200 trials and 500 resamples blur


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
