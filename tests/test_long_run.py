# SPDX-License-Identifier: Apache-2.0
"""Long chains against the laws of Gaussians, and the test of a trend against its false alarms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scorejax.evaluate.trend import trend
from scorejax.random import row_keys
from scorejax.samplers.long_run import adapted_step_size, log_spaced_steps, long_run
from tests.compilation import optimised_jit

RNG = jax.random.key(0)
VARIANCE = 0.3


def gaussian(x):
    return -jnp.sum(x**2, axis=1) / (2 * VARIANCE)


@pytest.mark.deep
@pytest.mark.parametrize("adjust", ["none", "mala", "hmc"])
def test_corrected_chains_keep_the_law_and_others_have_the_known_bias(adjust):
    # s^2 / v = 1: without correction the variance becomes v / (1 - 1 / 4). From draws of p, 30
    # steps of rho = 1 - 1 / 2 are the stationary law to 1e-9. Four standard errors, 1e-4 each.
    num = 40_000
    size = math.sqrt(VARIANCE)
    run = optimised_jit(
        lambda rng, x: long_run(
            rng, gaussian, x, adjust=adjust, step_size=size, record_at=np.array([10, 30])
        )
    )
    start = math.sqrt(VARIANCE) * jax.random.normal(jax.random.key(1), (num, 1))
    trace = run(RNG, start)
    x = np.asarray(trace.x[-1], np.float64)
    expected = VARIANCE / (1 - 1 / 4) if adjust == "none" else VARIANCE
    assert abs(x.mean()) < 4 * math.sqrt(expected / num)
    np.testing.assert_allclose(x.var(), expected, rtol=4 * math.sqrt(2 / num))
    np.testing.assert_allclose(trace.energy[-1], x[:, 0] ** 2 / (2 * VARIANCE), rtol=1e-5)
    assert np.mean(np.asarray(trace.x[-1] == trace.x[0])) < 0.01  # and the chains move
    assert 0.4 < trace.acceptance.mean() < 0.99


def test_records_do_not_change_the_chains():
    x = jax.random.normal(jax.random.key(1), (5, 2))
    options = {"adjust": "mala", "step_size": jnp.linspace(0.3, 0.7, 5)}
    keys = row_keys(RNG, 5)
    often = long_run(keys, gaussian, x, record_at=np.array([1, 4, 10]), **options)
    once = long_run(keys, gaussian, x, record_at=np.array([10]), **options)
    np.testing.assert_array_equal(often.x[-1], once.x[0])
    np.testing.assert_array_equal(often.steps, [1, 4, 10])
    # Acceptance is a mean over the steps since the record before: of 1, 3 and 6 steps.
    mean = np.asarray([1, 3, 6]) @ np.asarray(often.acceptance) / 10
    np.testing.assert_allclose(mean, once.acceptance[0], rtol=1e-6)


@pytest.mark.deep
def test_adapted_chains_accept_as_often_as_wanted():
    # 200 chains of 10 dimensions, 100 transitions: the error of a mean acceptance is 0.35 /
    # sqrt(20000) = 0.0025 for independent transitions. Eight of it, as they are not, and for the
    # step size's own error.
    for adjust, target in (("mala", 0.574), ("hmc", 0.651)):
        x = math.sqrt(VARIANCE) * jax.random.normal(RNG, (200, 10))
        found = jax.jit(
            lambda rng, x, adjust=adjust: adapted_step_size(
                rng, gaussian, x, adjust=adjust, num_warm_up=200
            )
        )(RNG, x)
        assert abs(found.acceptance - target) < 0.02
        held = long_run(
            RNG, gaussian, found.x, adjust=adjust, step_size=found.step_size,
            record_at=np.array([100]),
        )  # fmt: skip
        assert abs(held.acceptance.mean() - target) < 0.02


def test_records_are_spaced_evenly_in_the_logarithm():
    np.testing.assert_array_equal(log_spaced_steps(100_000), 10 ** np.arange(6))
    np.testing.assert_array_equal(log_spaced_steps(250), [1, 10, 100, 250])
    np.testing.assert_array_equal(log_spaced_steps(20, per_decade=2), [1, 3, 10, 20])


def test_a_trend_is_found_as_steep_as_it_is():
    steps = log_spaced_steps(10_000)
    slopes, offsets = np.random.default_rng(0).normal(size=(2, 20))
    found = trend(steps, np.log10(steps)[:, None] * slopes + offsets)
    margin = scipy.stats.t.ppf(0.975, 19) * slopes.std(ddof=1) / math.sqrt(20)
    expected = slopes.mean() + margin * np.array([0, -1, 1])
    np.testing.assert_allclose([found.slope, found.low, found.high], expected, rtol=1e-9)
    assert trend(steps, np.ones((5, 3))).p_value == 1


def test_a_trend_is_seen_where_there_is_none_as_rarely_as_stated():
    # Random walks over the records, without drift: a regression that takes the records of a chain
    # for independent would see a trend in most of them. 2000 tests at 5 %: four standard errors.
    draw = np.random.default_rng(0).normal
    steps = log_spaced_steps(10_000, per_decade=2)
    found = [trend(steps, np.cumsum(draw(size=(len(steps), 10)), axis=0)) for _ in range(2000)]
    alarms = np.array([one.p_value < 0.05 for one in found])
    outside = np.array([one.low > 0 or one.high < 0 for one in found])
    assert abs(alarms.mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)
    np.testing.assert_array_equal(alarms, outside)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjust": "mal"}, "unknown adjustment 'mal': did you mean 'mala'"),
        ({"adjust": "hmc", "num_leapfrog": 0}, "num_leapfrog needs to be at least 1; got 0"),
        ({"record_at": np.array([0, 5])}, r"record_at needs to rise from 1 or more; got \[0, 5\]"),
        ({"record_at": np.array([5, 5])}, "record_at needs to rise"),
    ],
)
def test_impossible_chains_are_refused(options, message):
    options = {"adjust": "mala", "record_at": np.array([5]), "step_size": 0.1} | options
    with pytest.raises(ValueError, match=message):
        long_run(RNG, gaussian, jnp.ones((2, 2)), **options)


def test_impossible_records_are_refused():
    with pytest.raises(ValueError, match="unknown adjustment with an acceptance 'none'"):
        adapted_step_size(RNG, gaussian, jnp.ones((2, 2)), adjust="none")
    with pytest.raises(ValueError, match="num_steps >= 1"):
        log_spaced_steps(0)
    with pytest.raises(ValueError, match="at least 2 records of 3 chains; got 2 of 1"):
        trend(np.array([1, 10]), np.ones((2, 1)))
    with pytest.raises(ValueError, match="a chain is not finite at 10"):
        trend(np.array([1, 10]), np.array([[1.0, 1, 1], [1, np.nan, 1]]))
