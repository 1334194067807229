# SPDX-License-Identifier: Apache-2.0
"""Tests of two samples of scores against enumeration and formulas, and corrections of p-values."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from scorejax.density.hypothesis import (
    benjamini_hochberg,
    fixed_sequence,
    holm,
    ks_two_sample,
    mann_whitney,
    per_class,
    permutation_test,
)
from scorejax.density.hypothesis.arguments import require_booleans, require_lengths, score_array

ALTERNATIVES = ("greater", "less", "two-sided")


def tied_samples(seed, n, m):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, n).astype(float), rng.integers(-1, 5, m).astype(float)


def pairs_won(x, y):
    return np.sum(x[:, None] > y) + np.sum(x[:, None] == y) / 2


def mean_difference(x, y):
    return x.mean() - y.mean()


def function_distance(x, y):
    grid = np.concatenate([x, y])
    return np.max(np.mean(y[:, None] <= grid, axis=0) - np.mean(x[:, None] <= grid, axis=0))


def enumerated(statistic, x, y, alternative):
    """p-value over all splits of the pooled scores; two-sided is twice the smaller tail."""
    pooled = np.concatenate([x, y])
    values = []
    for chosen in itertools.combinations(range(len(pooled)), len(x)):
        first = np.isin(np.arange(len(pooled)), chosen)
        values.append(statistic(pooled[first], pooled[~first]))
    observed, values = statistic(x, y), np.array(values)
    # Sums in another order may differ by rounding.
    above, below = np.mean(values >= observed - 1e-12), np.mean(values <= observed + 1e-12)
    tails = {"greater": above, "less": below, "two-sided": min(1, 2 * min(above, below))}
    return tails[alternative]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_mann_whitney_and_permutation_equal_enumeration_with_ties(alternative):
    for seed, n, m in ((0, 5, 4), (1, 6, 2)):
        x, y = tied_samples(seed, n, m)
        found = mann_whitney(x, y, alternative=alternative)
        assert found.statistic == pairs_won(x, y)
        # Ratios of counts below 1000.
        assert found.p_value == pytest.approx(enumerated(pairs_won, x, y, alternative), abs=1e-12)
        found = permutation_test(x, y, alternative=alternative)
        assert found.p_value == pytest.approx(
            enumerated(mean_difference, x, y, alternative), abs=1e-12
        )


def test_mann_whitney_is_exact_up_to_two_samples_of_eight():
    x, y = tied_samples(2, 8, 8)
    assert mann_whitney(x, y) == mann_whitney(x, y, method="exact")
    x, y = tied_samples(2, 12, 9)
    assert mann_whitney(x, y) == mann_whitney(x, y, method="asymptotic")


def test_asymptotic_mann_whitney_is_the_formula_with_ties_and_continuity():
    x, y = tied_samples(3, 40, 25)
    n, m = len(x), len(y)
    sizes = np.unique(np.concatenate([x, y]), return_counts=True)[1]
    total = n + m
    variance = n * m / 12 * (total + 1 - np.sum(sizes**3 - sizes) / (total * (total - 1)))
    u = pairs_won(x, y)
    z = (u - n * m / 2 - 0.5) / math.sqrt(variance)
    found = mann_whitney(x, y, method="asymptotic")
    # Double precision through a dozen operations.
    assert found.p_value == pytest.approx(stats.norm.sf(z), abs=1e-10)
    assert found.auroc == pytest.approx(u / (n * m), abs=1e-12)
    won = np.mean(x[:, None] > y) - np.mean(x[:, None] < y)
    assert found.cliffs_delta == pytest.approx(won, abs=1e-12)


def test_random_permutations_never_give_zero_and_raise_false_alarms_at_their_level():
    assert permutation_test(np.arange(50.0) + 100, np.arange(50.0), num_permutations=99) == (
        100.0,
        0.01,
    )
    # Without ties P(p <= .05) = .05 exactly for 19 permutations. 400 tests leave a standard error
    # of .0109; five of them happen by chance in 6e-7 of seeds.
    rng, alarms = np.random.default_rng(0), 0
    for seed in range(400):
        x, y = rng.normal(size=7), rng.normal(size=6)
        alarms += permutation_test(x, y, num_permutations=19, seed=seed).p_value <= 0.05
    assert abs(alarms / 400 - 0.05) < 5 * 0.0109


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_kolmogorov_smirnov_equals_enumeration(alternative):
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.7, size=6), rng.normal(size=4)
    sides = {"greater": function_distance, "less": lambda a, b: function_distance(b, a)}
    statistic = sides[alternative]
    found = ks_two_sample(x, y, alternative=alternative)
    assert found.statistic == pytest.approx(statistic(x, y), abs=1e-12)
    above = enumerated(statistic, x, y, "greater")
    assert found.p_value == pytest.approx(above, abs=1e-12)


def test_kolmogorov_smirnov_approaches_its_asymptotic_law_without_a_warning():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.15, size=10_000), rng.normal(size=900)  # SciPy's exact count overflows here
    d, p = ks_two_sample(x, y)
    # The next term of the asymptotic series is of relative order D = .07.
    assert p == pytest.approx(math.exp(-2 * d**2 * 9e6 / 10_900), rel=0.2)
    x, y = x[:500], y[:400]
    d, p = ks_two_sample(x, y, alternative="two-sided")
    k = np.arange(1, 50)
    series = 2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * k**2 * d**2 * 2e5 / 900))
    assert p == pytest.approx(series, rel=0.2)


def test_classes_that_differ_make_a_pooled_test_significant_and_none_of_their_own():
    # Simpson: class 1 is less likely and fails more often; inside a class failures score the same.
    rng = np.random.default_rng(6)
    classes = np.repeat([0, 1, 2], [400, 400, 9])
    scores = rng.normal(np.where(classes == 1, -2, 0))
    failed = rng.random(809) < np.where(classes == 1, 0.5, 0.05)
    failed[-9:] = [True] * 4 + [False] * 5
    assert mann_whitney(scores[~failed], scores[failed]).p_value < 1e-12
    found = per_class(scores, failed, classes)
    assert [c.label for c in found] == [0, 1, 2]
    assert [c.num_failures for c in found] == [int(failed[classes == k].sum()) for k in range(3)]
    assert found[2].result is None and found[2].adjusted_p_value is None  # 4 failures: not tested
    raw = [c.result.p_value for c in found[:2]]
    np.testing.assert_array_equal([c.adjusted_p_value for c in found[:2]], holm(np.array(raw)))
    assert min(c.adjusted_p_value for c in found[:2]) > 0.01  # of this seed
    assert per_class(scores, failed, classes, test=ks_two_sample, least=4)[2].result is not None


def test_holm_is_the_closure_of_bonferroni():
    p = np.array([0.03, 0.005, 0.2, 0.012, 0.012])
    subsets = [s for k in range(1, 6) for s in itertools.combinations(range(5), k)]
    closed = [max(min(1, len(s) * min(p[list(s)])) for s in subsets if i in s) for i in range(5)]
    np.testing.assert_allclose(holm(p), closed, rtol=1e-12)


def test_benjamini_hochberg_rejects_by_its_definition():
    p = np.random.default_rng(7).random(30) ** 3
    for q in (0.01, 0.05, 0.2, 0.5):
        ordered = np.sort(p)
        below = np.flatnonzero(ordered <= q * np.arange(1, 31) / 30)
        cut = ordered[below[-1]] if len(below) else -1
        np.testing.assert_array_equal(benjamini_hochberg(p) <= q, p <= cut)
    assert not len(benjamini_hochberg(np.array([])))


def test_fixed_sequence_stops_at_the_first_failure_of_each_start():
    p = np.array([0.02, 0.9, 0.01, 0.04, 0.2, 0.001])
    found = lambda starts: np.flatnonzero(fixed_sequence(p, 0.05, num_starts=starts)).tolist()
    assert found(1) == [0]
    assert found(2) == [0]  # starts 0 and 3, each at .025
    assert found(3) == [2]  # starts 0, 2 and 4, each at .0167
    assert found(6) == [5]


ONES = np.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(mann_whitney, ONES[:0], ONES), r"normal needs at least 1 score\(s\); got 0"),
        (partial(ks_two_sample, ONES, np.array([0, np.nan])), "failures needs numbers; row 1"),
        (partial(mann_whitney, ONES, ONES, alternative="grater"), "mean 'greater'"),
        (partial(mann_whitney, ONES, ONES, method="exct"), "did you mean 'exact'"),
        (partial(permutation_test, ONES, np.array([-np.inf])), "failures needs finite scores"),
        (partial(permutation_test, ONES, ONES, num_permutations=0), "at least 1; got 0"),
        (partial(require_lengths, scores=ONES, failed=ONES[1:]), "got scores 3, failed 2"),
        (partial(score_array, "x", np.ones((2, 1))), r"one number per row, \(n,\); got \(2, 1\)"),
        (partial(holm, np.array([0.5, 1.5])), r"lie in \[0, 1\]; row 1 is 1.5"),
        (partial(benjamini_hochberg, np.array([np.nan])), "row 0 is nan"),
        (partial(fixed_sequence, ONES, 1.0), r"alpha needs to lie inside \(0, 1\); got 1.0"),
        (partial(fixed_sequence, ONES, 0.1, num_starts=4), "num_starts needs to lie in 1 .. 3"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_failures_need_to_be_booleans():
    # ~1 is -2, which would pick rows in silence.
    scores, classes = np.arange(20.0), np.zeros(20, int)
    with pytest.raises(ValueError, match="failed needs booleans"):
        require_booleans(np.repeat([0, 1], 10))
    assert per_class(scores, np.repeat([True, False], 10), classes)[0].num_failures == 10
