# SPDX-License-Identifier: Apache-2.0
"""Energies fitted by sliced score matching: the loss of a Gaussian, slopes, and a fit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density import energy
from scorejax.density.fitting import Training
from scorejax.energies import score_of
from scorejax.models.mlp import SpectralPerceptron
from scorejax.models.spectral_norm import advance, power_iteration
from scorejax.objectives.sliced import score_sliced_vr_along

RNG = jax.random.key(0)


def test_the_sliced_loss_of_a_gaussian_is_its_closed_form(x64):
    # E = x^T L x / 2 and x ~ N(0, S): the loss, averaged over all sign vectors, is
    # tr(L S L) / 2 - tr L, least at L = S^-1. Rows whose second moment is S make the mean exact.
    rng, dim = np.random.default_rng(0), 3
    root = np.tril(rng.normal(size=(dim, dim))) + 2 * np.eye(dim)
    covariance, rows = root @ root.T, np.concatenate([root.T, -root.T]) * np.sqrt(dim)
    signs = np.array(list(itertools.product((-1, 1), repeat=dim))) / np.sqrt(dim)
    u = jnp.asarray(np.repeat(signs[:, None], len(rows), axis=1))

    def loss(matrix):
        score = score_of(lambda x: jnp.sum((x @ matrix) * x, axis=1) / 2)
        return jnp.mean(score_sliced_vr_along(score, u, jnp.asarray(rows)))

    matrix = rng.normal(size=(dim, dim))
    matrix = matrix @ matrix.T
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    expected = np.trace(matrix @ covariance @ matrix) / 2 - np.trace(matrix)
    np.testing.assert_allclose(value_and_grad(matrix)[0], expected, rtol=1e-10)
    gradient = value_and_grad(np.linalg.inv(covariance))[1]
    np.testing.assert_allclose(gradient + gradient.T, 0, atol=1e-10)


def test_slopes_without_learned_scales_are_at_most_one(x64):
    # One power iteration underestimates singular values; many leave a slope of 1 at most, of a
    # network whose units are all linear.
    network, x = SpectralPerceptron(8, 2, learned_scales=False), 1e-3 * jnp.eye(4)

    @jax.jit
    def slope(rng):
        params, spectral = (network.init(rng, x)[name] for name in ("params", "spectral"))
        spectral = jax.lax.fori_loop(0, 200, lambda _, u: advance(params, u), spectral)
        variables = {"params": params, "spectral": spectral}
        return jax.grad(lambda x: jnp.sum(network.apply(variables, x)))(x)

    lengths = np.linalg.norm(slope(RNG), axis=1)
    assert (lengths < 1 + 1e-6).all() and (lengths > 0.05).all()


@pytest.fixture(scope="module")
def two_clusters():
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], (1000, 1)) * np.ones((1, 2)) + 0.4 * rng.normal(size=(1000, 2))


def true_log_prob(x):
    squares = [jnp.sum((x - m) ** 2, axis=1) / (2 * 0.16) for m in (-1.0, 1.0)]
    return jnp.logaddexp(-squares[0], -squares[1])


TRAINING = Training(num_epochs=60, batch_size=100, learning_rate=1e-2, patience=60)


def relative_error(params, x):
    """Of the score, in the mean square."""
    x = jnp.asarray(x, jnp.float32)
    scores = jax.jit(jax.grad(lambda x: jnp.sum(energy.log_prob(params, x))))(x)
    truth = jax.jit(jax.grad(lambda x: jnp.sum(true_log_prob(x))))(x)
    return np.sum((scores - truth) ** 2) / np.sum(truth**2)


@pytest.mark.deep
def test_a_fit_finds_the_score_of_two_clusters(two_clusters):
    params = energy.fit(RNG, two_clusters, hidden=16, training=TRAINING)
    assert relative_error(params, two_clusters) < 0.1
    # The vectors have followed the kernels: what layers divide by is the largest singular value.
    for name, layer in params.variables["spectral"].items():
        kernel = np.asarray(params.variables["params"][name]["kernel"])
        found = power_iteration(kernel, layer["u"])[0]
        np.testing.assert_allclose(found, np.linalg.norm(kernel, 2), rtol=0.02)
    # The energy is bounded: far away it is flat.
    far = jax.jit(energy.log_prob)(params, jnp.asarray([[1e3, 1e3], [2e3, 2e3]]))
    np.testing.assert_allclose(far[0], far[1], atol=1e-3)


@pytest.mark.slow
def test_without_learned_scales_the_slope_is_too_small(two_clusters):
    params = energy.fit(RNG, two_clusters, hidden=16, learned_scales=False, training=TRAINING)
    assert relative_error(params, two_clusters) > 0.5
