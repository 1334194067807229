# SPDX-License-Identifier: Apache-2.0
"""Pictures of scores depend on what they say they show, and on nothing else."""

import numpy as np
import pytest

from scorejax.evaluate.detection_pictures import risk_coverage_picture, score_panels

RNG = np.random.default_rng(0)
FAILED = RNG.random(400) < 0.2
SCORES = RNG.normal(size=400) - FAILED


def test_risk_and_coverage_know_the_order_of_scores_alone():
    picture = risk_coverage_picture({"a": SCORES}, FAILED)
    assert picture.shape == (600, 1080, 3) and picture.dtype == np.uint8
    same = risk_coverage_picture({"a": np.exp(3 * SCORES)}, FAILED)
    np.testing.assert_array_equal(picture, same)
    assert (picture != risk_coverage_picture({"a": -SCORES}, FAILED)).any()


def test_a_score_that_finds_every_failure_lies_on_the_least_risk():
    perfect = np.where(FAILED, -1, 1) + RNG.random(400) / 2
    blue = [
        np.ptp(risk_coverage_picture({name: scores}, FAILED)[60:480, 120:600].astype(int), axis=2)
        for name, scores in (("perfect", perfect), ("other", SCORES))
    ]
    # Coverage 0 to 0.6, off the axis: there the perfect score's risk is 0, on the axis below.
    assert blue[0].max() == 0 and blue[1].max() > 60


def test_an_outlier_is_in_the_last_bin_and_does_not_stretch_the_panel():
    normal, failures = SCORES[~FAILED], SCORES[FAILED]
    # 0.5 % of 400 rows are two: one outlier is beyond the quantiles, however far away.
    far, farther = (np.append(normal[1:], value) for value in (1e3, 1e9))
    first = score_panels({"a": far, "b": -far}, {"a": failures, "b": failures})
    again = score_panels({"a": farther, "b": -farther}, {"a": failures, "b": failures})
    np.testing.assert_array_equal(first, again)
    swapped = score_panels({"a": failures}, {"a": far})
    assert (swapped != score_panels({"a": far}, {"a": failures})).any()


def test_scores_that_do_not_spread_or_are_infinite_are_drawn_all_the_same():
    infinite = np.append(SCORES[FAILED], -np.inf)  # the log-density of what cannot be
    normal = {"a": np.ones(9), "b": SCORES[~FAILED]}
    assert score_panels(normal, {"a": np.ones(5), "b": infinite}).ndim == 3


def test_scores_and_failures_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="need one shape"):
        risk_coverage_picture({"a": SCORES[1:]}, FAILED)
