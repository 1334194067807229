# SPDX-License-Identifier: Apache-2.0
"""Alarms on streams: fair bets, Ville's bound, and what breaks it."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from scipy import stats

from scorejax.density.hypothesis import (
    MARTINGALES,
    alarm,
    conformal_p_values,
    jumper_martingale,
    mixture_martingale,
    online_p_values,
    power_martingale,
)
from scorejax.random import row_keys


def test_online_p_values_are_conformal_among_all_earlier_scores():
    rng = np.random.default_rng(0)
    calibration, stream = rng.integers(0, 6, 4).astype(float), rng.integers(0, 8, 37).astype(float)
    keys = row_keys(jax.random.key(0), len(stream))
    found = online_p_values(keys, calibration, stream)
    for t in range(len(stream)):
        earlier = np.append(calibration, stream[:t])
        one = conformal_p_values(earlier, stream[t : t + 1], rng=keys[t : t + 1])
        assert found[t] == one[0]


@pytest.mark.parametrize("name", MARTINGALES)
def test_every_bet_is_fair(name):
    # E[M_3 | p_1, p_2] = M_2 over uniform p_3. The mixture's bet grows as 1 / (p log(p)^2) at 0;
    # with p = exp(-u / (1 - u)) the integrand is smooth, and 24 Gauss-Legendre nodes leave 2e-6.
    nodes, weights = np.polynomial.legendre.leggauss(24)
    u = (nodes + 1) / 2
    p = np.exp(-u / (1 - u))
    weights = weights / 2 * p / (1 - u) ** 2
    capital = lambda *p: math.exp(MARTINGALES[name](np.array(p))[-1])
    after = [capital(0.2, 0.7, x) for x in p]
    assert weights @ after == pytest.approx(capital(0.2, 0.7), rel=1e-5)
    assert weights @ [capital(x) for x in p] == pytest.approx(1, rel=1e-5)


def test_mixture_is_the_average_over_exponents():
    # Midpoint rule of 400 exponents: relative error t^2 / (24 * 400^2) = 2.3e-4 at most, t = 30.
    exponents = (np.arange(400) + 0.5) / 400
    rng = np.random.default_rng(1)
    for p in (rng.random(30), rng.random(30) ** 3, 1 - rng.random(30) * 0.1):
        capital = [np.exp(power_martingale(p, exponent=e)) for e in exponents]
        np.testing.assert_allclose(mixture_martingale(p), np.log(np.mean(capital, 0)), atol=3e-4)
    # Where the incomplete gamma function underflows, and where its power overflows.
    assert mixture_martingale(np.ones(999))[-1] == pytest.approx(-math.log(1000))
    sure = np.full(999, 1e-9)
    assert np.isfinite(mixture_martingale(sure)).all()
    assert mixture_martingale(sure)[-1] > power_martingale(sure)[-1]


def test_jumper_is_the_recursion_of_three_capitals():
    p, jump = np.random.default_rng(2).random(40), 0.2
    capitals, expected = np.full(3, 1 / 3), []
    for x in p:
        capitals = (1 - jump) * capitals + jump * capitals.sum() / 3
        capitals = capitals * (1 + np.array([-1, 0, 1]) * (x - 0.5))
        expected.append(math.log(capitals.sum()))
    # Forty products in another order.
    np.testing.assert_allclose(jumper_martingale(p, jump=jump), expected, atol=1e-12)


@pytest.mark.parametrize("name", MARTINGALES)
def test_alarms_on_uniform_streams_keep_villes_bound(name):
    # 1000 streams of 200: standard error .0095 at .1, five of them .0475.
    streams = np.random.default_rng(3).random((1000, 200))
    alarms = np.mean([alarm(p, 0.1, martingale=name).time is not None for p in streams])
    assert alarms < 0.1 + 0.0475
    assert alarms > 0.01  # a bound that is never near would hide a dead bettor


def test_online_p_values_keep_the_bound_and_those_of_a_fixed_calibration_set_do_not():
    # 20 calibration rows with streams of 400. The bound on 100 streams: .1 + 5 * .03.
    rng, online, fixed = np.random.default_rng(4), 0, 0
    keys = jax.random.split(jax.random.key(5), 100)
    for key in keys:
        calibration, stream = rng.normal(size=20), rng.normal(size=400)
        p = online_p_values(key, calibration, stream)
        online += alarm(p, 0.1, martingale="jumper").time is not None
        p = conformal_p_values(calibration, stream, rng=key)
        fixed += alarm(p, 0.1, martingale="jumper").time is not None
    assert online / 100 < 0.1 + 5 * 0.03
    assert fixed / 100 > 0.4


def test_online_p_values_are_uniform_and_uncorrelated():
    rng = np.random.default_rng(6)
    p = online_p_values(jax.random.key(7), rng.normal(size=5), rng.normal(size=4000))
    assert stats.kstest(p, "uniform").pvalue > 1e-4
    # Standard error of a correlation: 4000^(-1/2) = .0158.
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 5 * 0.0158


def test_a_change_is_found_and_its_time_is_after_it():
    rng = np.random.default_rng(8)
    stream = np.append(rng.normal(size=300), rng.normal(-2, size=200))
    p = online_p_values(jax.random.key(9), rng.normal(size=200), stream)
    for name in ("mixture", "jumper"):
        found = alarm(p, 0.01, martingale=name)
        assert 300 < found.time < 400
        assert found.log_capital[found.time] >= math.log(100) > found.log_capital[found.time - 1]
    # The jumper also finds scores that are too high, on which the mixture loses.
    too_high = online_p_values(jax.random.key(9), rng.normal(size=200), -stream)
    assert alarm(too_high, 0.01, martingale="mixture").time is None
    assert 300 < alarm(too_high, 0.01, martingale="jumper").time < 400


ONE, EMPTY = np.ones(1), np.ones(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(alarm, EMPTY, 0.1), "the stream is empty"),
        (partial(online_p_values, jax.random.key(0), ONE, EMPTY), "stream needs at least 1"),
        (partial(alarm, np.array([0.5, 0.0]), 0.1), r"lie in \(0, 1\]; row 1 is 0.0"),
        (partial(alarm, np.array([np.nan]), 0.1), "row 0 is nan"),
        (partial(alarm, ONE, 0.0), r"alpha needs to lie inside \(0, 1\); got 0.0"),
        (partial(alarm, ONE, 0.1, martingale="jumpr"), "did you mean 'jumper'"),
        (partial(power_martingale, ONE, exponent=1.0), "exponent needs"),
        (partial(jumper_martingale, ONE, jump=0.0), r"jump needs to lie in \(0, 1\]"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
