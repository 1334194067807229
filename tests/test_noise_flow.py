# SPDX-License-Identifier: Apache-2.0
"""Densities, levels and samples along the noise against a mixture with far modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.density.autoregressive import flow_discrete_log_probs, flow_log_probs
from scorejax.noise_flow import at_sigma
from scorejax.samplers.autoregressive import flowed, tabulated_by_levels
from tests.compilation import optimised_jit

MEANS, STD, WEIGHTS = np.array([-1.0, 1.0]), 0.1, np.array([0.3, 0.7])
SIGMAS = (0.05, 2.0)
FLOW = {"sigmas": SIGMAS, "low": -14.0, "high": 14.0}
NOISY_STD = np.hypot(STD, SIGMAS[0])


def head(u, c, sigma):
    """The score of the mixture with noise."""
    variance = STD**2 + sigma**2

    def log_prob(u):
        terms = [
            np.log(w) - (u - m) ** 2 / (2 * variance) for m, w in zip(MEANS, WEIGHTS, strict=True)
        ]
        return jnp.sum(jnp.logaddexp(*terms))

    return jax.grad(log_prob)(u)


def cdf(u):
    return sum(w * stats.norm.cdf(u, m, NOISY_STD) for m, w in zip(MEANS, WEIGHTS, strict=True))


@pytest.mark.deep
def test_modes_that_do_not_overlap_have_their_weights():
    rng = np.random.default_rng(0)
    x = MEANS[rng.choice(2, 100, p=WEIGHTS)] + NOISY_STD * rng.normal(size=100)
    c = jnp.zeros((100, 1, 1))
    measured = optimised_jit(lambda x: flow_log_probs(head, c, x, **FLOW))(
        jnp.asarray(x, jnp.float32)[:, None]
    )
    exact = np.log(
        sum(w * stats.norm.pdf(x, m, NOISY_STD) for m, w in zip(MEANS, WEIGHTS, strict=True))
    )
    errors = np.abs(measured.log_prob[:, 0] - exact)
    # 32 steps of a method of fourth order, over a range of 40 in the noise.
    assert errors.max() < 5e-3 and np.all(errors < measured.error[:, 0] + 1e-4)


LEVELS, LEAST = np.linspace(-1, 1, 17), 0.02
GEOMETRIC = 10.0 ** -np.arange(17)
ENDS = np.r_[0.3, np.full(15, 1e-5), 0.7]


def head_of_levels(u, c, sigma):
    """The score of grey levels with noise; c has the logarithms of their weights."""
    distance = jnp.asarray(LEVELS, u.dtype).reshape((1,) * u.ndim + (-1,)) - u[..., None]
    shares = jax.nn.softmax(c - distance**2 / (2 * sigma**2), axis=-1)
    return jnp.sum(shares * distance, axis=-1) / sigma**2


@pytest.mark.deep
def test_levels_have_their_probabilities_also_where_these_are_small():
    # A resolved level is a Gaussian of a sixth of the spacing: its peak times the spacing would be
    # 2.4 times its mass. Level k has the probability 10^-k, or all are small but those at the ends.
    bounds = (LEVELS[1:] + LEVELS[:-1]) / 2
    weights = np.stack([GEOMETRIC / GEOMETRIC.sum(), ENDS / ENDS.sum()])
    c = jnp.asarray(np.repeat(np.log(weights), 17, axis=0), jnp.float32)[:, None]
    level = jnp.tile(jnp.arange(17), 2)[:, None]
    options = {"bounds": bounds, "sigmas": (LEAST, 1.0), "low": -7.2, "high": 7.2}
    measured = flow_discrete_log_probs(head_of_levels, c, level, num_cells=48, **options)
    tails = stats.norm.sf(bounds, LEVELS[:, None], LEAST)
    exact = weights @ -np.diff(tails, axis=1, prepend=1.0, append=0.0)
    log_prob, error = (np.asarray(a).reshape(2, 17) for a in measured)
    errors = np.abs(log_prob - np.log(exact))
    # Simpson's rule at steps of 0.8 sigma errs by 0.1 %; across the gap 32 steps of the flow do by
    # 4 %. The peaks erred by 90 % and 160 %.
    assert errors[0].max() < 0.01 and errors[1].max() < 0.08
    assert np.all(errors < error + 1e-4)
    # The same in float32, of distribution functions that end at 1.
    np.testing.assert_allclose(np.exp(log_prob).sum(axis=1), 1, atol=1e-4)


@pytest.mark.deep
def test_samples_of_levels_are_drawn_by_the_table_of_their_probabilities():
    # One noise level: a table of 24 adaptive cells would miss some of these modes.
    bounds, num = (LEVELS[1:] + LEVELS[:-1]) / 2, 1024
    weights = np.arange(1.0, 18.0) / np.sum(np.arange(1.0, 18.0))
    c = jnp.broadcast_to(jnp.asarray(np.log(weights), jnp.float32), (num, 17))
    cells = {"bounds": bounds, "margin": 0.3, "cells_per_level": 12}
    invert = tabulated_by_levels(at_sigma(head_of_levels, LEAST), **cells)
    u = np.asarray(invert(c, (jnp.arange(num) + 0.5) / num))
    counts = np.bincount(np.searchsorted(bounds, u), minlength=17)
    # Cells of half a standard deviation leave a hundredth of the mass of a level; and one draw.
    np.testing.assert_allclose(counts / num, weights, atol=1.5 / num, rtol=0.01)


@pytest.mark.deep
def test_quantiles_come_down_from_the_largest_noise():
    v = jnp.linspace(0.01, 0.99, 50)
    u = flowed(head, **FLOW)(jnp.zeros((50, 1)), v)
    np.testing.assert_allclose(cdf(np.asarray(u)), v, atol=1e-3)  # of the table, at its tails
