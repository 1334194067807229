# SPDX-License-Identifier: Apache-2.0
"""False alarms of the detector over thousands of calibration sets, clean and contaminated.

The density is fitted once, and the scores of all sets are computed together. To calibrate is then
to sort them: the detector is shown to have these thresholds.
"""

import numpy as np
import pytest
from scipy import optimize, stats

from scorejax.density import gaussian
from scorejax.density.hypothesis import FalseAlarmLaw, false_alarm_law, marginal_threshold
from scorejax.failures.detector import FailureDetector
from scorejax.failures.scores import max_softmax

NUM_SETS, NUM_CALIBRATION, NUM_FRESH = 2000, 99, 40
ALPHA, DELTA = 0.1, 0.1
RARE = 1e-5
"""Probability with which each test fails although the guarantee holds."""


def rows(rng, num, shift=0.0):
    """Features N(shift, I), and logits that are linear in them with noise."""
    x = rng.normal(size=(num, 4)) + shift
    logits = x[:, :3] * 2 + rng.normal(size=(num, 3))
    return x.astype(np.float32), logits.astype(np.float32)


def scores_of(detector, x, logits):
    """Of all rows in one call, which takes a tenth of the time of the detector's."""
    density = gaussian.log_prob(detector.density_, detector.preparation_(x).x)
    values = {
        "density": density + detector.preparation_.log_det,
        "max_softmax": max_softmax(logits),
    }
    return {name: np.asarray(v, float) for name, v in values.items()}


@pytest.fixture(scope="module")
def detector():
    rng = np.random.default_rng(0)
    fitted = FailureDetector("gaussian", alpha=ALPHA).fit(rows(rng, 2000)[0])
    x, logits = rows(rng, NUM_CALIBRATION)
    return fitted.calibrate(x, logits=logits)


@pytest.fixture(scope="module")
def sets():
    """Features and logits of sets of calibration rows and, after those, of fresh ones."""
    num = NUM_CALIBRATION + NUM_FRESH
    x, logits = rows(np.random.default_rng(1), NUM_SETS * num)
    return x.reshape(NUM_SETS, num, -1), logits.reshape(NUM_SETS, num, -1)


@pytest.fixture(scope="module")
def scores(detector, sets):
    """Of each score, ascending calibration scores (sets, n) and fresh ones (sets, m)."""
    x, logits = (values.reshape(-1, values.shape[-1]) for values in sets)
    found = scores_of(detector, x, logits)
    by_set = {name: values.reshape(NUM_SETS, -1) for name, values in found.items()}
    ends = {name: np.split(v, [NUM_CALIBRATION], axis=1) for name, v in by_set.items()}
    return {name: (np.sort(calibration), fresh) for name, (calibration, fresh) in ends.items()}


def law_of(delta):
    """That of one score of a pair."""
    return false_alarm_law(NUM_CALIBRATION, ALPHA / 2, delta=delta and delta / 2)


def assert_counts_follow(law, counts):
    """Counts flagged among NUM_FRESH normal rows, one for each calibration set: a chi-square test
    against the beta-binomial law, in cells that expect 20 sets or more."""
    probability = stats.betabinom.pmf(np.arange(NUM_FRESH + 1), NUM_FRESH, *law.parameters)
    num, expected, found = len(counts), [0.0], [0]
    for count, share in enumerate(probability):
        expected[-1] += num * share
        found[-1] += int(np.sum(counts == count))
        rest = num * probability[count + 1 :].sum()
        if expected[-1] >= 20 and rest >= 20:
            expected.append(0.0)
            found.append(0)
    assert len(expected) > 2
    # The law sums to 1 but for rounding, of which scipy allows less.
    expected = np.array(expected) * num / np.sum(expected)
    assert stats.chisquare(found, expected).pvalue > RARE


@pytest.mark.parametrize("delta", [None, DELTA])
@pytest.mark.parametrize("name", ["density", "max_softmax"])
def test_false_alarms_of_each_score_follow_their_law(scores, name, delta):
    calibration, fresh = scores[name]
    law = law_of(delta)
    assert_counts_follow(law, np.sum(fresh < calibration[:, law.rank - 1, None], axis=1))


def test_the_pair_keeps_alpha_on_average(scores):
    law = law_of(None)
    below = [fresh < calibration[:, law.rank - 1, None] for calibration, fresh in scores.values()]
    rates = np.any(below, axis=0).mean(axis=1)
    error = rates.std(ddof=1) / np.sqrt(NUM_SETS)
    assert rates.mean() <= ALPHA + stats.norm.isf(RARE) * error
    # More than either score alone, or nothing would be shown.
    assert rates.mean() > law.mean


def test_the_pair_keeps_alpha_for_all_but_few_sets_of_calibration_rows(detector, scores):
    num, num_above = 10_000, {}
    fresh = scores_of(detector, *rows(np.random.default_rng(2), num))
    density, softmax = fresh.values()
    # By so much the share among these rows may be off a set's rate.
    slack = stats.norm.isf(RARE) * np.sqrt(ALPHA * (1 - ALPHA) / num)
    for delta in (None, DELTA):
        limits = [scores[name][0][:, law_of(delta).rank - 1] for name in fresh]
        rates = [np.mean((density < s) | (softmax < t)) for s, t in zip(*limits, strict=True)]
        num_above[delta] = np.sum(np.array(rates) > ALPHA + slack)
    assert num_above[DELTA] <= stats.binom.isf(RARE, NUM_SETS, DELTA)
    # Without delta, that many sets are above: what it is for.
    assert num_above[None] > num_above[DELTA]


@pytest.mark.parametrize("num_sets", [3, pytest.param(NUM_SETS, marks=pytest.mark.slow)])
def test_the_detector_has_these_thresholds_and_flags_what_is_below(detector, sets, num_sets):
    for delta in (None, DELTA):
        detector.set_params(delta=delta)
        for x, logits in zip(sets[0][:num_sets], sets[1][:num_sets], strict=True):
            detector.calibrate(x[:NUM_CALIBRATION], logits=logits[:NUM_CALIBRATION])
            found = detector.scored(x, logits=logits)
            flagged = np.zeros(len(x), bool)
            for name, values in found.scores.items():
                threshold = np.sort(values[:NUM_CALIBRATION])[law_of(delta).rank - 1]
                assert detector.thresholds_[0][name] == threshold
                flagged |= values < threshold
            np.testing.assert_array_equal(detector.predict(x, logits=logits) == -1, flagged)
    detector.set_params(delta=None)


@pytest.mark.parametrize("num_bad", [2, 8])
@pytest.mark.parametrize("lowest", [True, False])
def test_contamination_moves_the_law_of_false_alarms(detector, scores, num_bad, lowest):
    # Rows far away have the lowest densities, and those at the mean the highest.
    bad = np.full((1, 4), 50.0) if lowest else detector.preparation_.mean[None]
    score = detector.density_scores(bad.astype(np.float32))["density"]
    calibration, fresh = scores["density"]
    assert (score < calibration.min()) if lowest else (score > calibration.max())
    clean = np.random.default_rng(3).permuted(calibration, axis=1)[:, num_bad:]
    mixed = np.sort(np.append(clean, np.full((NUM_SETS, num_bad), score), axis=1))
    rank = law_of(None).rank
    counts = np.sum(fresh < mixed[:, rank - 1, None], axis=1)
    law = FalseAlarmLaw(max(rank - num_bad, 0) if lowest else rank, NUM_CALIBRATION - num_bad)
    if law.rank:
        assert_counts_follow(law, counts)
    else:  # As many failures as may be flagged: the threshold is one of them.
        assert not counts.any()


def test_contamination_by_failures_like_those_to_come_costs_power():
    shift, level, share, num = 3.0, 0.05, 0.1, 100_000
    below = lambda t: np.array([stats.norm.cdf(t), stats.norm.cdf(t + shift)])
    limit = optimize.brentq(lambda t: below(t) @ [1 - share, share] - level, -20, 20)
    rng = np.random.default_rng(0)
    bad = rng.random(num) < share
    threshold = marginal_threshold(rng.normal(size=num) - shift * bad, level)
    # The rates move by 4 standard errors of the quantile's level, and the densities of both laws
    # at it; once in 10^4.
    slope = stats.norm.pdf(limit + np.array([0, shift]))
    error = 4 * np.sqrt(level * (1 - level) / num) / (slope @ [1 - share, share])
    np.testing.assert_allclose(below(threshold), below(limit), atol=error * slope.max())
    assert below(limit)[0] < level / 5 and below(limit)[1] < below(stats.norm.ppf(level))[1] / 1.5
