# SPDX-License-Identifier: Apache-2.0
"""Selective prediction: p-values of the risk, and the guarantee over calibration sets."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from scorejax.density.hypothesis import (
    clopper_pearson_p_value,
    hoeffding_bentkus_p_value,
    select_threshold,
)

GRID = np.linspace(0, 0.9, 46)


def draw(rng, num):
    """Scores uniform in (0, 1) and failures with probability (1 - score) / 2."""
    scores = rng.random(num)
    return scores, rng.random(num) < (1 - scores) / 2


def true_risk(threshold):
    return (1 - threshold) / 4


@pytest.mark.parametrize("p_value", [clopper_pearson_p_value, hoeffding_bentkus_p_value])
@pytest.mark.parametrize("num", [1, 30, 400])
def test_p_values_are_valid_for_mistakes_at_the_boundary(p_value, num):
    # P(p <= a) <= a for every attainable a, by summing the binomial law; 1e-12 is its rounding.
    total, risk = np.arange(num + 1), 0.1
    p = p_value(total, np.full(num + 1, num), risk)
    law = stats.binom.pmf(total, num, risk)
    assert all(law[p <= a].sum() <= a + 1e-12 for a in p)
    assert np.all(np.diff(p) >= 0)


def test_clopper_pearson_p_value_inverts_its_confidence_bound():
    p = clopper_pearson_p_value(np.array([7]), np.array([120]), 0.1)[0]
    bound = stats.binomtest(7, 120, alternative="less").proportion_ci(1 - p, method="exact").high
    assert bound == pytest.approx(0.1, rel=1e-9)


def test_hoeffding_bentkus_is_valid_for_losses_between_zero_and_one():
    # Beta(1, 3) losses have the mean 1/4. 4000 sets: standard error .0047 at .1.
    totals = np.random.default_rng(0).beta(1, 3, (4000, 60)).sum(1)
    p = hoeffding_bentkus_p_value(totals, np.full(4000, 60), 0.25)
    assert np.mean(p <= 0.1) < 0.1 + 5 * 0.0047
    # An independent statement of Hoeffding's bound, for a mean of .1 at 60 rows.
    kl = 0.1 * math.log(0.1 / 0.25) + 0.9 * math.log(0.9 / 0.75)
    both = hoeffding_bentkus_p_value(np.array([6.0, 45.0]), np.array([60, 60]), 0.25)
    bentkus = math.e * stats.binom.cdf(6, 60, 0.25)
    assert both == pytest.approx([min(math.exp(-60 * kl), bentkus), 1.0], rel=1e-9)
    # Where Bentkus' bound is the smaller, a fraction of a loss counts as one.
    found = hoeffding_bentkus_p_value(np.array([29.9]), np.array([400]), 0.1)
    assert found[0] == pytest.approx(math.e * stats.binom.cdf(30, 400, 0.1), rel=1e-9)


def test_certified_risk_exceeds_the_target_no_more_often_than_promised():
    # The risk of a threshold is (1 - t) / 4 here. Target .1 with delta = .1; 600 sets leave a
    # standard error of .0122. The best threshold without an error of estimation is .6.
    rng, delta = np.random.default_rng(1), 0.1
    chosen, naive = [], []
    for _ in range(600):
        scores, failed = draw(rng, 1000)
        found = select_threshold(scores, failed, thresholds=GRID, risk=0.1, delta=delta)
        chosen.append(min(found.threshold, 1.0))
        accepted = np.cumsum(np.ones(1000))
        risks = np.cumsum(failed[np.argsort(-scores)]) / accepted
        naive.append(np.sort(scores)[::-1][np.flatnonzero(risks <= 0.1)[-1:]].min(initial=1.0))
    assert np.mean(true_risk(np.array(chosen)) > 0.1) < delta + 5 * 0.0122
    assert np.mean(true_risk(np.array(naive)) > 0.1) > 0.4  # the empirical risk promises nothing
    assert np.mean(true_risk(np.array(chosen)) > 0.1) > 0.02  # nor so careful as to be useless
    assert np.mean(1 - np.array(chosen)) > 0.25  # coverage; .4 would be the best


def test_selection_counts_what_it_accepts():
    scores, failed = draw(np.random.default_rng(2), 2000)
    found = select_threshold(scores, failed, thresholds=GRID, risk=0.15, delta=0.05)
    accepted = scores >= found.threshold
    assert found.threshold in GRID and found.coverage == accepted.mean()
    assert found.risk == pytest.approx(failed[accepted].mean(), rel=1e-12)
    assert true_risk(found.threshold) < 0.15
    shuffled = select_threshold(scores, failed, thresholds=GRID[::-1], risk=0.15, delta=0.05)
    assert found == shuffled
    for fractional in (0.5, 1.0):
        loose = select_threshold(scores, failed * fractional, thresholds=GRID, risk=0.15,
                                 delta=0.05, p_value=hoeffding_bentkus_p_value)  # fmt: skip
        assert loose.risk == pytest.approx(fractional * failed[scores >= loose.threshold].mean())


def test_rows_at_the_threshold_are_accepted():
    scores, failed = np.repeat([0.0, 1.0], [50, 100]), np.repeat([True, False], [50, 100])
    found = select_threshold(scores, failed, thresholds=np.array([1.0]), risk=0.1, delta=0.1)
    assert found == (1.0, 100 / 150, 0.0)


def test_nothing_is_accepted_if_nothing_can_be_certified():
    scores, failed = draw(np.random.default_rng(3), 20)  # .9^20 = .12 > .05
    found = select_threshold(scores, failed, thresholds=GRID, risk=0.1, delta=0.05)
    assert found.threshold == math.inf and found.coverage == 0 and math.isnan(found.risk)


SCORES, LOSSES = np.arange(3.0), np.zeros(3)
options = {"thresholds": SCORES, "risk": 0.1, "delta": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"risk": 1.0}, r"risk needs to lie inside \(0, 1\); got 1.0"),
        ({"delta": 0.0}, "delta needs"),
        ({"losses": np.array([0, 0.5, 1])}, "losses need to be 0 or 1; use hoeffding_bentkus"),
        ({"losses": np.array([0, 2.0, 1]), "p_value": hoeffding_bentkus_p_value}, "row 1 is 2.0"),
        ({"scores": np.array([0, np.nan, 1])}, "scores needs numbers; row 1 is NaN"),
        ({"thresholds": np.ones(0)}, "thresholds needs at least 1"),
        ({"num_starts": 4}, "num_starts needs to lie in 1 .. 3; got 4"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes, message):
    arguments = {"scores": SCORES, "losses": LOSSES, **options, **changes}
    call = partial(select_threshold, arguments.pop("scores"), arguments.pop("losses"))
    with pytest.raises(ValueError, match=message):
        call(**arguments)
