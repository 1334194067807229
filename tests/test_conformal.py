# SPDX-License-Identifier: Apache-2.0
"""Conformal p-values and thresholds: exact by exchange of rows, and laws over calibration sets."""

import inspect
import math
from functools import partial

import jax
import numpy as np
import pytest
from scipy import special, stats

from scorejax.density.hypothesis import (
    FalseAlarmLaw,
    benjamini_hochberg,
    bonferroni,
    calibration_size,
    conformal,
    conformal_p_values,
    false_alarm_law,
    marginal_rank,
    marginal_threshold,
    mondrian_p_values,
    smallest_alpha,
    training_conditional_rank,
    training_conditional_threshold,
    two_sided_p_values,
)
from scorejax.random import row_keys

MISTAKE = 1e-6
"""Probability of a false alarm of a test by the inequality of Dvoretzky, Kiefer and Wolfowitz."""


def uniform_distance(p):
    return stats.kstest(p, "uniform").statistic


def dkw(num):
    return math.sqrt(math.log(2 / MISTAKE) / (2 * num))


def left_out(values, **options):
    """p-value of each value among the others: the law of a test row exchangeable with them."""
    rest = lambda i: np.delete(values, i)
    return np.concatenate([conformal_p_values(rest(i), values[i : i + 1], **options)
                           for i in range(len(values))])  # fmt: skip


def test_p_values_of_exchangeable_rows_take_each_value_once():
    p = left_out(np.random.default_rng(0).normal(size=20))
    np.testing.assert_allclose(np.sort(p), np.arange(1, 21) / 20, rtol=1e-15)


def test_ties_only_make_p_values_larger():
    p = left_out(np.random.default_rng(1).integers(0, 5, 20))
    assert all(np.sum(p <= j / 20) <= j for j in range(21)) and len(np.unique(p)) < 20


def test_randomised_p_values_are_uniform_with_ties():
    values = np.random.default_rng(2).integers(0, 5, 20).astype(float)
    draws = [
        conformal_p_values(np.delete(values, i), np.full(1000, values[i]), rng=jax.random.key(i))
        for i in range(20)
    ]
    p = np.concatenate(draws)
    # One thousand draws for each exchange: a mixture of equal shares is no farther than draws.
    assert uniform_distance(p) < dkw(len(p))
    assert p.min() > 0 and p.max() < 1


def test_true_scores_have_uniform_p_values_up_to_the_error_of_both_samples():
    # p-values of one calibration set are dependent: its own error adds to that of the test rows.
    rng, dim = np.random.default_rng(3), 8
    log_prob = lambda x: -np.sum(x**2, axis=1) / 2
    scores, calibration = (log_prob(rng.normal(size=(n, dim))) for n in (2000, 20_000))
    assert uniform_distance(stats.chi2.sf(-2 * scores, dim)) < dkw(2000)  # .0602
    assert uniform_distance(conformal_p_values(calibration, scores)) < dkw(2000) + dkw(20_000)


def test_calibrating_on_training_rows_is_caught():
    # A Gaussian fitted to 60 rows of 30 features scores its own rows far above new ones.
    rng = np.random.default_rng(4)
    train, held_out, test = rng.normal(size=(60, 30)), *rng.normal(size=(2, 400, 30))
    whiten = np.linalg.inv(np.linalg.cholesky(np.cov(train.T)))
    log_prob = lambda x: -np.sum(((x - train.mean(0)) @ whiten.T) ** 2, axis=1) / 2
    leaked = conformal_p_values(log_prob(train), log_prob(test))
    assert stats.kstest(leaked, "uniform").pvalue < 1e-6 and np.mean(leaked <= 0.05) > 0.5
    honest = conformal_p_values(log_prob(held_out), log_prob(test))
    assert uniform_distance(honest) < 2 * dkw(400)


def test_a_row_depends_on_its_own_key_only():
    rng = np.random.default_rng(5)
    calibration, scores = rng.normal(size=30), rng.normal(size=6)
    keys = row_keys(jax.random.key(0), 6)
    every = conformal_p_values(calibration, scores, rng=keys)
    some = conformal_p_values(calibration, scores[2:4], rng=keys[2:4])
    np.testing.assert_array_equal(every[2:4], some)


def test_ranks_agree_with_p_values_bit_for_bit():
    for n in (1, 9, 19, 99, 199, 1000):
        for alpha in np.arange(1, 100) / 100:
            assert marginal_rank(n, alpha) == np.sum(np.arange(1, n + 2) / (n + 1) <= alpha)
    calibration = np.random.default_rng(6).integers(0, 40, 99).astype(float)
    scores = np.arange(-1.0, 42.0)
    for alpha in (0.01, 0.07, 0.29, 0.57):
        flagged = scores < marginal_threshold(calibration, alpha)
        np.testing.assert_array_equal(flagged, conformal_p_values(calibration, scores) <= alpha)


def test_false_alarm_rate_over_calibration_sets_follows_its_beta_law():
    # The rate of a threshold is the normal distribution function there. n = 199, alpha = .05: rank
    # 10. 2500 sets; a p-value below 1e-4 happens by chance in 1e-4 of seeds.
    rng, n, alpha, delta = np.random.default_rng(7), 199, 0.05, 0.1
    sets = rng.normal(size=(2500, n))
    rates = special.ndtr([marginal_threshold(c, alpha) for c in sets])
    law = false_alarm_law(n, alpha)
    assert law.parameters == (10, 190) and law.mean == 0.05
    assert stats.kstest(rates, stats.beta(*law.parameters).cdf).pvalue > 1e-4
    assert np.mean(rates > alpha) > 0.4  # a bound on the mean is none on the rate of one set

    rates = special.ndtr([training_conditional_threshold(c, alpha, delta=delta) for c in sets])
    law = false_alarm_law(n, alpha, delta=delta)
    assert stats.kstest(rates, stats.beta(*law.parameters).cdf).pvalue > 1e-4
    exceeds = lambda rank: stats.beta.sf(alpha, rank, n + 1 - rank)
    assert exceeds(law.rank) <= delta < exceeds(law.rank + 1)
    # Standard error of the fraction: sqrt(.1 * .9 / 2500) = .006.
    assert abs(np.mean(rates > alpha) - exceeds(law.rank)) < 5 * 0.006


def test_flagged_counts_are_beta_binomial():
    law = false_alarm_law(199, 0.05)
    assert law.count_interval(500, 0.999) == (4, 64)  # rates .008 and .128
    rng, counts = np.random.default_rng(8), []
    for _ in range(300):
        normal = rng.normal(size=699)
        counts.append(np.sum(conformal_p_values(normal[:199], normal[199:]) <= 0.05))
    # 1 of 1000 outside: more than 5 of 300 has a probability below 1e-6.
    assert np.sum((np.array(counts) < 4) | (np.array(counts) > 64)) <= 5
    low, high = law.interval(0.9)
    assert stats.beta.cdf([low, high], 10, 190) == pytest.approx([0.05, 0.95], abs=1e-9)


def test_too_few_rows_flag_nothing_and_say_what_they_can_promise():
    assert smallest_alpha(19) == 0.05 and calibration_size(0.05) == 19
    few = np.arange(18.0)
    assert marginal_threshold(few, 0.05) == -math.inf
    assert marginal_threshold(few, smallest_alpha(18)) == 0.0
    assert FalseAlarmLaw(0, 18).interval() == (0.0, 0.0)
    for alpha in np.arange(1, 100) / 100:
        size = calibration_size(alpha)
        assert marginal_rank(size, alpha) >= 1
        assert size == 1 or marginal_rank(size - 1, alpha) == 0
    size = calibration_size(0.05, delta=0.1)
    assert size == 45  # .95^45 < .1 < .95^44
    assert training_conditional_rank(size, 0.05, delta=0.1) == 1
    assert training_conditional_rank(size - 1, 0.05, delta=0.1) == 0
    assert smallest_alpha(45, delta=0.1) == pytest.approx(1 - 0.1 ** (1 / 45), rel=1e-12)


@pytest.mark.parametrize(("odd", "rank"), [(-np.inf, 6), (np.inf, 10)])
def test_contaminated_calibration_moves_the_rate_by_a_known_amount(odd, rank):
    # Four failures among 199 rows. Low ones use up ranks: fewer false alarms, less power, and none
    # at all from the tenth on. High ones, which are not exchangeable with anything, raise the rate.
    rng, rates = np.random.default_rng(9), []
    for _ in range(1000):
        calibration = np.append(rng.normal(size=195), np.full(4, odd))
        rates.append(special.ndtr(marginal_threshold(calibration, 0.05)))
    assert stats.kstest(rates, stats.beta(*FalseAlarmLaw(rank, 195).parameters).cdf).pvalue > 1e-4
    spoilt = np.append(rng.normal(size=189), np.full(10, -np.inf))
    assert marginal_threshold(spoilt, 0.05) == -math.inf


def test_mondrian_p_values_are_conformal_inside_each_group():
    rng = np.random.default_rng(10)
    groups, test_groups = rng.integers(0, 3, 200), rng.integers(0, 3, 50)
    calibration, scores = rng.normal(groups), rng.normal(test_groups)
    found = partial(mondrian_p_values, calibration, scores, calibration_groups=groups,
                    groups=test_groups)  # fmt: skip
    p, random_p = found(), found(rng=row_keys(jax.random.key(1), 50))
    for k in range(3):
        rows = test_groups == k
        inside = partial(conformal_p_values, calibration[groups == k], scores[rows])
        np.testing.assert_array_equal(p[rows], inside())
        keys = row_keys(jax.random.key(1), 50)[np.flatnonzero(rows)]
        np.testing.assert_array_equal(random_p[rows], inside(rng=keys))


def test_two_sided_p_values_find_scores_too_high_and_stay_uniform():
    rng = np.random.default_rng(11)
    calibration, scores = rng.normal(size=99), rng.normal(size=500)
    key = jax.random.key(2)
    one_sided = conformal_p_values(calibration, scores, rng=key)
    found = two_sided_p_values(calibration, scores, rng=key)
    # 1 - U is exact in double precision; the sum of ranks is rounded once or twice.
    expected = np.minimum(1, 2 * np.minimum(one_sided, 1 - one_sided))
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert two_sided_p_values(calibration, np.array([9.0, -9.0])) == pytest.approx(0.02)


def test_bonferroni_holds_for_p_values_that_exclude_each_other():
    # p and 1 - p, the worst case: the bound is attained.
    p = (np.arange(1000) + 0.5) / 1000
    combined = bonferroni(p, 1 - p)
    assert all(np.mean(combined <= a) == pytest.approx(a) for a in (0.01, 0.1, 0.5))
    np.testing.assert_allclose(bonferroni(p, p, p), np.minimum(1, 3 * p))


def test_benjamini_hochberg_bounds_false_discoveries_among_p_values_of_one_calibration_set():
    # 30 normal rows and 20 that are 3 lower. E[FDP] <= .2 * 30 / 50 = .12. The FDP of 400 sets has
    # a standard deviation below .15: five standard errors are .0375.
    rng, proportions, found = np.random.default_rng(12), [], []
    for _ in range(400):
        scores = np.append(rng.normal(size=30), rng.normal(-3, size=20))
        p = conformal_p_values(rng.normal(size=200), scores)
        rejected = benjamini_hochberg(p) <= 0.2
        proportions.append(rejected[:30].sum() / max(rejected.sum(), 1))
        found.append(rejected[30:].mean())
    assert np.std(proportions) < 0.15 and np.mean(proportions) < 0.12 + 0.0375
    assert np.mean(found) > 0.8


untyped = inspect.unwrap  # A user's calls have no checks of types.
ONES, NAN = np.ones(3), np.array([0, np.nan, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(conformal_p_values, np.ones(0), ONES), "calibration needs at least 1 score"),
        (partial(conformal_p_values, NAN, ONES), "calibration needs numbers; row 1 is NaN"),
        (partial(conformal_p_values, ONES, NAN), "scores needs numbers; row 1 is NaN"),
        (partial(marginal_threshold, ONES, 0.0), r"alpha needs to lie inside \(0, 1\); got 0.0"),
        (partial(marginal_threshold, ONES, 1.5), r"alpha needs to lie inside \(0, 1\); got 1.5"),
        (partial(training_conditional_threshold, ONES, 0.1, delta=1.0), "delta needs"),
        (partial(marginal_rank, 0, 0.1), "num_calibration needs to be at least 1; got 0"),
        (partial(FalseAlarmLaw, 4, 3), r"rank needs to lie in 0 .. 3; got 4"),
        (bonferroni, "at least one array of p-values"),
        (partial(untyped(bonferroni), np.ones((2, 3))), r"one array \(n,\) .*; got \(2, 3\)"),
        (partial(untyped(bonferroni), ONES, np.ones(2)), "match; got p_values 0 3, p_values 1 2"),
        (partial(untyped(benjamini_hochberg), np.ones((2, 3))), r"one array \(n,\) .*\(2, 3\)"),
        (partial(untyped(conformal.uniform), 0, 3), r"a key: jax.random.key\(0\), say; got 0"),
        (partial(mondrian_p_values, ONES, ONES, calibration_groups=np.zeros(3, int),
                 groups=np.array([0, 7, 0])), "group 7 has none"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
