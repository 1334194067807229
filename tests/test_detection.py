# SPDX-License-Identifier: Apache-2.0
"""Metrics of detection against scikit-learn, hand counts and quadrature; coverage of intervals."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from scorejax.density.hypothesis import mann_whitney
from scorejax.evaluate.detection import (
    aurc,
    auroc,
    average_precision,
    bootstrap_interval,
    delong_interval,
    detection_error,
    excess_aurc,
    fpr_at_tpr,
    risk_coverage,
)


def rows(seed, num=200, ties=True):
    """Scores, failures and weights, some of them zero."""
    rng = np.random.default_rng(seed)
    failed = rng.random(num) < 0.3
    scores = rng.normal(np.where(failed, -0.7, 0))
    weights = rng.integers(0, 4, num) / 3
    return np.round(scores, 1) if ties else scores, failed, weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_equal_those_of_scikit_learn(ties, weighted):
    scores, failed, weights = rows(0, ties=ties)
    w = weights if weighted else None
    near = partial(pytest.approx, abs=1e-12)  # sums of 200 doubles
    assert auroc(scores, failed, weights=w) == near(roc_auc_score(failed, -scores, sample_weight=w))
    assert average_precision(scores, failed, weights=w) == near(
        average_precision_score(failed, -scores, sample_weight=w)
    )
    assert average_precision(scores, failed, positive="normal", weights=w) == near(
        average_precision_score(~failed, scores, sample_weight=w)
    )
    # All thresholds; scikit-learn drops those in line with their neighbours otherwise.
    fpr, tpr, _ = roc_curve(failed, -scores, sample_weight=w, drop_intermediate=False)
    assert fpr_at_tpr(scores, failed, weights=w) == near(fpr[tpr >= 0.95 - 1e-9][0])
    assert detection_error(scores, failed, weights=w) == near(np.min(1 - tpr + fpr) / 2)
    fpr, tpr, _ = roc_curve(~failed, scores, sample_weight=w, drop_intermediate=False)
    found = fpr_at_tpr(scores, failed, tpr=0.8, positive="normal", weights=w)
    assert found == near(fpr[tpr >= 0.8 - 1e-9][0])


def test_auroc_is_the_mann_whitney_statistic_and_flips_under_negation():
    scores, failed, weights = rows(1)
    found = auroc(scores, failed)
    assert found == pytest.approx(mann_whitney(scores[~failed], scores[failed]).auroc, abs=1e-12)
    assert auroc(-scores, failed) == pytest.approx(1 - found, abs=1e-12)
    counts = np.rint(3 * weights).astype(int)
    again = [np.repeat(a, counts) for a in (scores, failed)]
    for metric in (auroc, average_precision, fpr_at_tpr, detection_error, aurc):
        assert metric(scores, failed, weights=counts) == pytest.approx(metric(*again), abs=1e-12)


def test_ten_points_by_hand():
    #         flagged from the left
    scores = np.arange(10.0)
    failed = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    assert fpr_at_tpr(scores, failed) == 3 / 6  # all four failures at score 6
    assert fpr_at_tpr(scores, failed, tpr=0.75) == 1 / 6
    assert fpr_at_tpr(scores, failed, positive="normal") == 3 / 4  # down to score 1
    assert detection_error(scores, failed) == pytest.approx((1 / 4 + 1 / 6) / 2, abs=1e-15)
    assert average_precision(scores, failed) == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 7) / 4)
    curve = risk_coverage(scores, failed)
    np.testing.assert_array_equal(curve.thresholds, scores[::-1])
    np.testing.assert_allclose(curve.coverage, np.arange(1, 11) / 10)
    np.testing.assert_allclose(
        curve.risk, [0, 0, 0, 1 / 4, 1 / 5, 1 / 6, 2 / 7, 3 / 8, 3 / 9, 4 / 10]
    )


def test_gaussian_shift_has_its_closed_form():
    rng, shift, num = np.random.default_rng(2), 1.2, 4000
    failed = np.arange(num) % 2 == 0
    found = delong_interval(rng.normal(np.where(failed, 0, shift)), failed)
    half_width = (found.high - found.low) / 2
    # Four standard errors.
    assert abs(found.estimate - special.ndtr(shift / math.sqrt(2))) < 4 * half_width / 1.96


@pytest.mark.parametrize(
    ("mu", "likelihood", "softmax"),
    [(1.0, 0.2003, 0.7997), (1.5, 0.6619, 0.8999), (2.0, 0.8772, 0.9590)],
)
def test_errors_of_two_overlapping_classes_by_quadrature(mu, likelihood, softmax):
    # Classes N(+-mu, 1), classifier sign(z): at mu = 1 mistakes lie at the peak of the density and
    # its log-likelihood is worse than chance. Weights are the mass of correct and wrong rows at z.
    z = np.linspace(-8, 8, 8001)
    right, wrong = stats.norm.pdf(np.abs(z), mu), stats.norm.pdf(np.abs(z), -mu)
    failed = np.repeat([False, True], len(z))
    weights = np.append(right, wrong)
    score = lambda values: auroc(np.tile(values, 2), failed, weights=weights)
    assert score(np.log(right + wrong)) == pytest.approx(likelihood, abs=1e-3)
    assert score(np.abs(z)) == pytest.approx(softmax, abs=1e-3)


def test_area_under_risk_coverage_is_the_mean_risk_down_to_each_row():
    scores, failed, _ = rows(3)
    risks = [failed[scores >= s].mean() for s in scores]
    assert aurc(scores, failed) == pytest.approx(np.mean(risks), abs=1e-12)
    assert aurc(np.zeros(200), failed) == pytest.approx(failed.mean(), abs=1e-12)
    best = np.sort(failed)[::-1]  # failures have the lowest ranks
    assert excess_aurc(np.arange(200), best) == pytest.approx(0, abs=1e-12)
    # r + (1 - r) log(1 - r) is the limit of the best area; 1 / n is the step of the sum.
    r = failed.mean()
    assert aurc(np.arange(200), best) == pytest.approx(r + (1 - r) * math.log1p(-r), abs=1 / 200)
    worst = aurc(-np.arange(200), best)
    assert 0 < excess_aurc(scores, failed) < worst
    assert aurc(scores, np.zeros(200, bool)) == 0


def test_excess_area_of_the_best_of_all_rankings_is_zero_whatever_the_weights():
    failed, weights = np.array([1, 1, 0, 1, 0], bool), np.array([3, 1, 2, 2, 0.5])
    rankings = np.array(list(itertools.permutations(range(5))))
    excess = [excess_aurc(ranking, failed, weights=weights) for ranking in rankings]
    assert min(excess) == pytest.approx(0, abs=1e-15)


def test_delong_variance_is_that_of_all_pairs():
    scores, failed, _ = rows(5, 60)
    x, y = scores[~failed], scores[failed]
    won = (x[:, None] > y) + (x[:, None] == y) / 2
    variance = np.var(won.mean(1), ddof=1) / len(x) + np.var(won.mean(0), ddof=1) / len(y)
    area = won.mean()
    found = delong_interval(scores, failed, level=0.9)
    reach = stats.norm.ppf(0.95) * math.sqrt(variance) / (area * (1 - area))
    ends = special.expit(special.logit(area) + np.array([-reach, reach]))
    assert found == pytest.approx((area, *ends), abs=1e-12)
    assert delong_interval(scores, failed, level=0.9, weights=np.full(60, 0.3)) == pytest.approx(
        found, abs=1e-12
    )


def test_intervals_cover_the_truth_at_their_level():
    # 40 failures and 60 normal rows at AUROC .92. Standard error at .95 of 500 sets: .0097; the
    # logit's interval is known to be off by up to .02 at such sizes.
    rng, failed, covered = np.random.default_rng(6), np.arange(100) < 40, 0
    truth = special.ndtr(2 / math.sqrt(2))
    for _ in range(500):
        _, low, high = delong_interval(rng.normal(np.where(failed, 0, 2)), failed)
        covered += low < truth < high
    assert abs(covered / 500 - 0.95) < 0.02 + 5 * 0.0097


def test_bootstrap_agrees_with_delong_and_resamples_the_rate_if_asked():
    scores, failed, weights = rows(7, 400)
    for w in (None, 1 + weights):
        found = bootstrap_interval(auroc, scores, failed, weights=w, num_resamples=499)
        expected = delong_interval(scores, failed, weights=w)
        assert found.estimate == pytest.approx(expected.estimate, abs=1e-12)
        # 499 resamples leave 3 % of the width; a skew of the law some more.
        assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.15)
    # A constant score has the failure rate as its AURC, which varies as a binomial proportion.
    constant = partial(bootstrap_interval, aurc, np.zeros(400), failed, num_resamples=499)
    assert constant() == pytest.approx([failed.mean()] * 3, abs=1e-12)
    _, low, high = constant(stratified=False)
    rate = failed.mean()
    width = 2 * 1.96 * math.sqrt(rate * (1 - rate) / 400)
    assert high - low == pytest.approx(width, rel=0.15)


def test_failures_all_apart_leave_an_interval_all_the_same():
    scores, failed = np.arange(30.0), np.arange(30) < 10
    found = delong_interval(scores, failed)
    # Ten pairs without a common row all in order: .025^(1/10).
    assert found == pytest.approx((1.0, 0.025**0.1, 1.0), rel=1e-6)
    assert delong_interval(-scores, failed) == pytest.approx((0.0, 0.0, 1 - 0.025**0.1), rel=1e-6)


def test_a_constant_score_leaves_an_interval_too():
    for num in (10, 9):
        found = delong_interval(np.zeros(30), np.arange(30) < num)
        # As five successes in ten trials, or 4.5 in nine, between those of 4 and of 5.
        ends = stats.beta.ppf([0.025, 0.975], [num / 2, num / 2 + 1], [num / 2 + 1, num / 2])
        assert found == pytest.approx((0.5, *ends), abs=1e-12)
    even = stats.binomtest(5, 10).proportion_ci(0.95, method="exact")
    assert delong_interval(np.zeros(20), np.arange(20) < 10)[1:] == pytest.approx(tuple(even))


def test_infinite_scores_have_ranks_and_ties():
    scores = np.array([-np.inf, -np.inf, 0.0, np.inf, np.inf])
    failed = np.array([True, False, True, False, False])
    assert auroc(scores, failed) == pytest.approx((2.5 + 2) / 6)


GOOD = {"scores": np.arange(6.0), "failed": np.arange(6) < 3}


@pytest.mark.parametrize(
    ("metric", "changes", "message"),
    [
        (auroc, {"failed": np.zeros(6, bool)}, "there are no failures"),
        (auroc, {"failed": np.ones(6, bool)}, "there are no normal examples"),
        (auroc, {"failed": np.zeros(5, bool)}, r"one shape \(n,\), n >= 1; got \(6,\), \(5,\)"),
        (auroc, {"failed": np.zeros(6)}, "failed needs booleans"),
        (auroc, {"scores": np.array([0, 1, 2, np.nan, 4, 5])}, "row 3 is NaN"),
        (auroc, {"weights": -np.ones(6)}, "weights need to be finite and at least 0"),
        (aurc, {"scores": np.ones(0), "failed": np.zeros(0, bool)}, "n >= 1"),
        (average_precision, {"positive": "failur"}, "did you mean 'failure'"),
        (fpr_at_tpr, {"tpr": 95}, r"tpr needs to lie in \(0, 1\]; got 95"),
        (delong_interval, {"failed": np.arange(6) < 1}, "at least 2 failures and 2 normal"),
        (delong_interval, {"level": 95.0}, r"level needs to lie inside \(0, 1\); got 95.0"),
        (partial(bootstrap_interval, auroc), {"failed": np.arange(6) < 5}, "got 5 and 1"),
        (partial(bootstrap_interval, auroc), {"num_resamples": 0}, "num_resamples needs"),
    ],
)
def test_bad_input_is_refused_in_one_line(metric, changes, message):
    with pytest.raises(ValueError, match=message):
        metric(**{**GOOD, **changes})
