# SPDX-License-Identifier: Apache-2.0
"""Densities, levels and samples along the noise against a mixture with far modes."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from scorejax.density.autoregressive import flow_discrete_log_probs, flow_log_probs
from scorejax.samplers.autoregressive import flowed
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


def test_levels_have_the_probability_between_the_images_of_their_bounds():
    bounds, level = np.linspace(-1.1, 1.1, 12), jnp.arange(13)[:, None]
    measured = flow_discrete_log_probs(head, jnp.zeros((13, 1, 1)), level, bounds=bounds, **FLOW)
    exact = np.diff([0.0, *cdf(bounds), 1.0])
    # Differences of distribution functions in single precision, and a table's interpolation.
    np.testing.assert_allclose(jnp.exp(measured.log_prob[:, 0]), exact, atol=2e-4)


def test_quantiles_come_down_from_the_largest_noise():
    v = jnp.linspace(0.01, 0.99, 50)
    u = flowed(head, **FLOW)(jnp.zeros((50, 1)), v)
    np.testing.assert_allclose(cdf(np.asarray(u)), v, atol=1e-3)  # of the table, at its tails
