# SPDX-License-Identifier: Apache-2.0
"""Toys of the plane: densities against quadrature and convolution, draws against densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from scorejax.data.toy import TOYS, toy_distribution, toy_view
from scorejax.evaluate.plane import grid_log_prob, log_integral

LIMIT, NUM = 1.6, 160
"""A spacing of 0.02, the least noise of any toy: trapezoidal sums of such densities are exact up to
2 exp(-2 pi^2) = 5e-9 of them, and the corner of the window is 6 standard deviations away."""


@pytest.mark.parametrize("name", TOYS)
def test_densities_integrate_to_one_and_noised_ones_are_the_convolution(name, x64):
    distribution, scale, std = toy_distribution(name), 0.8, 0.15
    values = grid_log_prob(distribution.log_prob, limit=LIMIT, num=NUM)
    assert abs(log_integral(values, limit=LIMIT).value) < 1e-7
    y = np.random.default_rng(0).uniform(-1.2, 1.2, (40, 2))
    noised = np.exp(jax.jit(distribution.noised(scale, std).log_prob)(jnp.asarray(y)))
    places = scale * np.linspace(-LIMIT, LIMIT, NUM + 1)
    kernels = scipy.stats.norm.pdf(y[:, :, None], places, std)  # (points, axis, places)
    expected = np.einsum("ij,bj,bi->b", np.exp(values), kernels[:, 0], kernels[:, 1])
    expected *= (2 * LIMIT / NUM) ** 2
    np.testing.assert_allclose(noised, expected, rtol=1e-6, atol=1e-9)


def cell_masses(log_prob, edges, num_nodes=24):
    """Mass of each cell of a square grid, by Gauss and Legendre's rule in every cell."""
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    half = np.diff(edges) / 2
    places = ((edges[:-1] + half)[:, None] + half[:, None] * nodes).ravel()
    row = lambda y: log_prob(jnp.stack([jnp.asarray(places), jnp.full(places.shape, y)], axis=1))
    density = np.exp(jax.jit(lambda: jax.lax.map(row, jnp.asarray(places)))())
    weights = (half[:, None] * weights).ravel()
    weighted = density * weights[:, None] * weights
    shape = (len(half), num_nodes) * 2
    return weighted.reshape(shape).sum(axis=(1, 3))  # rows of y, columns of x


@pytest.mark.deep
@pytest.mark.parametrize("name", TOYS)
def test_draws_follow_the_density(name, x64):
    # Pearson's test over 12 x 12 cells, those with fewer than ten expected draws as one. Five toys
    # at 1e-5 each alarm once in 20,000 seeds.
    distribution, num, edges = toy_distribution(name), 40_000, np.linspace(-1.2, 1.2, 13)
    x = np.asarray(distribution.sample(jax.random.key(0), num))
    counts = np.histogram2d(x[:, 1], x[:, 0], [edges, edges])[0]
    expected = num * cell_masses(distribution.log_prob, edges)
    rare = expected < 10
    observed = np.append(counts[~rare], num - counts[~rare].sum())
    expected = np.append(expected[~rare], num - expected[~rare].sum())
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-5


@pytest.mark.parametrize("name", TOYS)
def test_noised_draws_are_scaled_draws_with_noise(name):
    # Each coordinate against the other way to draw it, by Kolmogorov and Smirnov; ten comparisons
    # at 1e-5 each alarm once in 10,000 seeds.
    distribution = toy_distribution(name)
    noised = np.asarray(distribution.noised(0.6, 0.3).sample(jax.random.key(1), 4000))
    x = np.asarray(distribution.sample(jax.random.key(2), 4000))
    x = 0.6 * x + 0.3 * np.random.default_rng(0).normal(size=x.shape)
    for axis in range(2):
        assert scipy.stats.ks_2samp(noised[:, axis], x[:, axis]).pvalue > 1e-5


@pytest.mark.deep
@pytest.mark.parametrize("name", TOYS)
def test_single_precision_holds_near_the_data_and_scores_are_finite_everywhere(name):
    log_prob = jax.jit(toy_distribution(name).log_prob)
    x = toy_view(name, num_train=500, num_test=1).train
    far = np.array([[0, 0], [0.25, 0.25], [0.5, 0], [20, -3], [-100, 100]], np.float32)
    x = np.concatenate([x, far])
    with jax.enable_x64(True):
        exact = log_prob(x.astype(np.float64))[:500]
    # Rounding of x by 6e-8 moves a density of noise 0.02 by 1e-5 five of these away; exponents of
    # up to 2500 squared distances or Bessel arguments are rounded by 1e-7 of them.
    value, pull = jax.vjp(log_prob, x)
    np.testing.assert_allclose(value[:500], exact, atol=3e-4)
    (score,) = pull(jnp.ones(len(x)))
    score = score[500:]
    assert np.isfinite(score).all()
    # Far away the score points back.
    assert np.all(np.sum(score[3:] * far[3:], axis=1) < 0)


@pytest.mark.parametrize("name", TOYS)
def test_views_have_the_units_of_a_network(name):
    view = toy_view(name, num_train=2000, num_test=500, seed=3)
    assert view.train.shape == (2000, 2) and view.test.shape == (500, 2)
    assert np.abs(view.train).max() < 1.5
    # The moons are wide and low.
    np.testing.assert_allclose(view.train.std(axis=0), 0.5, atol=0.2 if name == "moons" else 0.08)
    again, other = (toy_view(name, num_train=2000, num_test=500, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(view.train, again.train)
    assert not np.any(view.test == other.test) and not np.any(view.test == view.train[:500])


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="unknown toy 'ring': did you mean 'rings'"):
        toy_view("ring", num_train=1, num_test=1)
    with pytest.raises(ValueError, match="num_test needs to be at least 1; got 0"):
        toy_view("rings", num_train=1, num_test=0)
    for scale, std in ((0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="noised needs scale > 0 and std >= 0"):
            toy_distribution("moons").noised(scale, std)
