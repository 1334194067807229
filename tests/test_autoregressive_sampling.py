# SPDX-License-Identifier: Apache-2.0
"""Samples dimension by dimension against closed forms, and one sampler against another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.random import row_keys
from scorejax.samplers import autoregressive as samplers
from tests.compilation import optimised_jit
from tests.gaussian_conditionals import Conditionals, covariance, gaussian_head

DIM = 3
SIGMA = covariance(DIM)
MODEL = Conditionals.of(SIGMA)
ORDER = np.arange(DIM)
INVERT = samplers.tabulated(gaussian_head, low=-10.0, high=10.0)


def advance(cache: None, x: jax.Array, position: jax.Array) -> tuple[None, jax.Array]:
    return cache, MODEL.contexts(x)[:, position]


def ancestral(draw: samplers.DrawDimension, num: int, seed: int = 0) -> np.ndarray:
    keys = row_keys(jax.random.key(seed), num)
    options = {"order": ORDER, "calls_per_draw": 1}
    sample = lambda keys: samplers.ancestral(keys, draw, advance, None, (num, DIM), **options).x
    return np.asarray(optimised_jit(sample)(keys))


@pytest.mark.deep
def test_inverse_distribution_functions_draw_the_data():
    x = ancestral(samplers.inverse_cdf(INVERT), 4000)
    white = np.linalg.solve(np.linalg.cholesky(SIGMA), x.T)
    for values in white:
        # Three tests: a false alarm in 3,000.
        assert stats.kstest(values, "norm").pvalue > 1e-4
    correlations = np.corrcoef(white)[np.triu_indices(DIM, 1)]
    assert np.max(np.abs(correlations)) < 4.2 / np.sqrt(4000)  # 1 in 12,000 for three of them


@pytest.mark.deep
def test_langevin_moves_have_the_variances_of_their_step_size():
    # One level: a chain of steps alpha has the variance V / (1 - alpha / (4 V)).
    alpha, num = 0.4, 2**15
    head = lambda u, c, sigma: gaussian_head(u, c)
    draw = samplers.langevin(head, sigmas=np.array([1.0]), step_size=alpha, steps_per_level=60)

    def without_last_step(keys: jax.Array, c: jax.Array) -> jax.Array:
        # The last move to the mean given u is linear: u (1 - 1 / V) + mean / V.
        u, variance = draw(keys, c), c[..., 1]
        return (u - c[..., 0] / variance) / (1 - 1 / variance)

    x = ancestral(without_last_step, num)
    variances = MODEL.variances / (1 - alpha / (4 * MODEL.variances))
    expected = MODEL._replace(variances=variances).covariance
    # Entries of a sample covariance of 32,768 rows err by 1 % of the variances; 3 % asked for.
    assert np.max(np.abs(np.cov(x.T) - expected)) < 0.03 * np.max(np.diag(expected))


def test_langevin_ends_at_the_clean_mean_of_the_last_noise():
    sigma = 0.5
    head = lambda u, c, s: -u / (1 + s**2)
    draw = samplers.langevin(head, sigmas=np.array([sigma]), step_size=0.05, steps_per_level=400)
    keys = row_keys(jax.random.key(0), 2**14)
    u = np.asarray(optimised_jit(draw)(keys, jnp.zeros((len(keys), 1))))
    # Of noisy values N(0, 1 + sigma^2) the mean of the clean one is u / (1 + sigma^2).
    step = 0.05 / (4 * (1 + sigma**2))
    expected = 1 / (1 + sigma**2) / (1 - step)
    assert u.var() == pytest.approx(expected, rel=0.05)  # 4.5 standard errors of 2^14 draws


@pytest.mark.deep
def test_sweeps_end_at_the_sample_of_the_ancestral_order():
    num = 16
    keys = row_keys(jax.random.key(3), num)
    one_by_one = ancestral(samplers.inverse_cdf(INVERT), num, seed=3)
    swept = samplers.jacobi(keys, INVERT, MODEL.contexts, (num, DIM), order=ORDER)
    # Compiled once with optimisations and once without: rounding of the same table.
    np.testing.assert_allclose(swept.x, one_by_one, atol=2e-4)
    # No dimension depends on more than those before it; the last sweep sees that nothing moves.
    assert np.all(swept.sweeps <= DIM)


@pytest.mark.deep
def test_independent_dimensions_take_two_sweeps_and_rows_do_not_wait():
    means = jnp.broadcast_to(jnp.array([0.0, 1.0]), (4, DIM, 2))
    independent = lambda x: means[: len(x)]
    half = lambda x: jnp.where(
        (jnp.arange(len(x)) % 2 == 0)[:, None, None], independent(x), MODEL.contexts(x)
    )
    keys = row_keys(jax.random.key(5), 4)
    run = functools.partial(samplers.jacobi, invert=INVERT, order=np.arange(DIM))
    both = run(keys, contexts=half, shape=(4, DIM))
    assert both.sweeps.tolist()[::2] == [2, 2]
    alone = run(keys[:1], contexts=independent, shape=(1, DIM))
    np.testing.assert_allclose(alone.x, both.x[:1], atol=1e-6)  # the same sums, ordered otherwise


def test_a_row_is_a_function_of_its_own_key():
    cdf = lambda u, c: jax.nn.sigmoid((u - c[..., 0]) / c[..., 1])
    draw = samplers.inverse_cdf(samplers.bisected(cdf, low=-9.0, high=9.0))
    keys, c = row_keys(jax.random.key(1), 3), jnp.tile(jnp.array([0.5, 2.0]), (3, 1))
    np.testing.assert_array_equal(draw(keys, c)[1:2], draw(keys[1:2], c[1:2]))


def test_bisection_inverts_a_distribution_function_and_clips_to_its_ends():
    cdf = lambda u, c: jax.nn.sigmoid((u - c[..., 0]) / c[..., 1])
    invert = samplers.bisected(cdf, low=-3.0, high=5.0)
    v = jnp.array([0.001, 0.2, 0.5, 0.9, 0.99999])
    c = jnp.broadcast_to(jnp.array([1.0, 0.5]), (5, 2))
    exact = np.clip(1 + 0.5 * np.log(v / (1 - v)), -3, 5)
    # The rounding of v next to 1 is that of u / 1e-5 (here clipped); elsewhere of single precision.
    np.testing.assert_allclose(invert(c, v), exact, atol=1e-5)


def test_broken_distribution_functions_draw_nan_and_not_an_end():
    # Not compiled: three steps of a bisection, of which one row is NaN.
    cdf = lambda u, c: jax.nn.sigmoid(u) + c[..., 0]
    invert = samplers.bisected(cdf, low=-3.0, high=5.0, num_steps=3)
    u = invert(jnp.array([[np.nan], [0.0]]), jnp.array([0.9, 0.9]))
    assert np.isnan(u[0]) and np.isfinite(u[1])


def test_unstable_steps_are_refused():
    with pytest.raises(ValueError, match=r"step_size in \(0, 0.01\).*got 0.02"):
        samplers.langevin(
            gaussian_head, sigmas=np.array([1.0, 0.05]), step_size=0.02, steps_per_level=1
        )
    with pytest.raises(ValueError, match="steps_per_level >= 1; got 0"):
        samplers.langevin(gaussian_head, sigmas=np.array([1.0]), step_size=0.02, steps_per_level=0)
