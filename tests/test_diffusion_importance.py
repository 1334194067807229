# SPDX-License-Identifier: Apache-2.0
"""Bounds of log Z by walks of a diffusion model, against closed forms of Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density.diffusion_importance import (
    NoiseLadder,
    diffusion_normalizer,
    step_stds,
)
from scorejax.numerics import gaussian_log_prob
from scorejax.random import row_keys

NUM, STD, LOG_Z = 4000, np.array([0.1, 0.7]), 2.0
RATIOS = np.geomspace(0.05, 50, 41)
"""Noise-to-signal ratios of levels 0 .. k, beside the data's own spread."""
SCALES = np.sqrt((1 + RATIOS[0] ** 2) / (1 + RATIOS**2))


def marginal(scale):
    """Variances of x_j = scale x_0 + noise."""
    return scale**2 * STD**2 + 1 - scale**2


def ladder(factor=1.0, every=1):
    """The ladder of independent coordinates N(0, STD^2), with scores `factor` times the true."""
    scales = SCALES[::every]
    variances = jnp.asarray(np.array([marginal(s) for s in scales[1:]]), float)
    return NoiseLadder(lambda j, x: -factor * x / variances[j][None], scales[1:] / scales[:-1])


def log_prob(x):
    return LOG_Z - jnp.log(STD).sum() + gaussian_log_prob(x / jnp.asarray(STD, x.dtype)[None], 1.0)


def draws(key):
    return jnp.asarray(STD, float)[None] * jax.random.normal(jax.random.key(key), (NUM, 2))


@functools.partial(jax.jit, static_argnames=("factor", "every", "chunk"))
def bounds(factor=1.0, every=1, chunk=None):
    options = {"chunk": chunk}
    return diffusion_normalizer(
        jax.random.key(0), ladder(factor, every), log_prob, draws(1), draws(2), **options
    )


@pytest.mark.parametrize(
    "factor, every, chunk", [(1.0, 1, None), (0.9, 1, None), (1.0, 4, NUM // 4)]
)
def test_the_bounds_hold_the_normaliser_however_wrong_scores_and_levels_are(factor, every, chunk):
    found = bounds(factor, every, chunk)
    # Both weights are unbiased; four standard errors, right to 10 % at such effective sizes.
    assert min(found.lower_effective_size, found.upper_effective_size) > 200
    assert abs(found.lower - LOG_Z) < 4 * found.lower_error
    assert abs(found.upper - LOG_Z) < 4 * found.upper_error
    if factor == every == 1:
        assert found.met and found.lower_effective_size > 0.9 * NUM


def test_rows_are_divided_by_chunks_without_a_rest():
    with pytest.raises(ValueError, match="chunk needs to divide 4000 walks; got 7"):
        bounds(chunk=7)


def test_stds_of_steps_are_those_of_the_posterior():
    found = step_stds(row_keys(jax.random.key(3), NUM), ladder(), draws(4))
    low, high = (np.array([marginal(s) for s in SCALES[cut]]) for cut in (np.s_[:-1], np.s_[1:]))
    kept = np.square(SCALES[1:] / SCALES[:-1])[:, None]
    expected = np.sqrt(low * (1 - kept) / high)  # variance of x_j given x_{j+1}, jointly Gaussian
    # E score^2 has a relative error of sqrt(2 / NUM) = 2 %, and at most 3/4 of the variance is
    # subtracted by it; four of these, halved by the root.
    np.testing.assert_allclose(found, expected, rtol=4 * 0.022 * 3 / 2)


def test_decays_are_checked():
    with pytest.raises(ValueError, match="between 0 and 1; got"):
        NoiseLadder(lambda j, x: x, np.array([0.9, 1.0]))
