# SPDX-License-Identifier: Apache-2.0
"""Composite score matching against closed forms of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.objectives.composite import composite_score_matching, denoising_composite
from scorejax.random import row_keys
from tests.gaussian_conditionals import Conditionals, covariance, draws, gaussian_head

DIM = 4
SIGMA = covariance(DIM)
TRUE = Conditionals.of(SIGMA)
OTHER = Conditionals(0.7 * TRUE.weights, 1.3 * TRUE.variances)
NUM = 100_000


def losses(model: Conditionals, x: np.ndarray) -> np.ndarray:
    return np.asarray(composite_score_matching(gaussian_head, model.contexts, jnp.asarray(x)))


def expected(model: Conditionals) -> float:
    """E of the loss: sum of r_d / (2 u_d^2) - 1 / u_d, r_d the variance of the residual."""
    residual = np.eye(DIM) - model.weights
    r = np.einsum("di,ij,dj->d", residual, SIGMA, residual)
    return float(np.sum(r / (2 * model.variances**2) - 1 / model.variances))


def test_each_loss_is_half_the_squared_score_plus_its_slope():
    x = draws(SIGMA, 16)
    residual = x - x @ OTHER.weights.T
    by_hand = np.sum(residual**2 / (2 * OTHER.variances**2) - 1 / OTHER.variances, axis=1)
    # Sums of eight terms of about 1 in single precision.
    np.testing.assert_allclose(losses(OTHER, x), by_hand, rtol=1e-5, atol=1e-5)


def test_the_mean_is_that_of_the_closed_form():
    values = losses(OTHER, draws(SIGMA, NUM))
    # Four standard errors: a false alarm in 16,000.
    assert abs(values.mean() - expected(OTHER)) < 4 * values.std() / np.sqrt(NUM)


def test_the_minimum_is_minus_half_the_sum_of_inverse_conditional_variances():
    minimum = -np.sum(1 / TRUE.variances) / 2
    assert expected(TRUE) == pytest.approx(minimum, abs=1e-9)  # of double precision
    joint = -np.trace(np.linalg.inv(SIGMA)) / 2
    assert abs(minimum - joint) > 0.1, "joint score matching has another minimum"


def test_the_excess_is_half_the_squared_distance_of_the_scores():
    x = draws(SIGMA, NUM)
    scores = lambda model: gaussian_head(jnp.asarray(x), model.contexts(jnp.asarray(x)))
    distance = np.sum((scores(TRUE) - scores(OTHER)) ** 2, axis=1) / 2
    # Of the same draws, so that most of the noise cancels; four standard errors.
    difference = losses(OTHER, x) - losses(TRUE, x) - distance
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(NUM)


def test_the_slope_is_the_diagonal_of_the_jacobian_at_fixed_contexts(x64):
    rng = np.random.default_rng(0)
    mixing = np.tril(rng.normal(size=(6, 6)), -1)
    contexts = lambda x: jnp.tanh(x @ mixing.T)[..., None]
    head = lambda u, c: jnp.sin(u * (1 + c[..., 0])) - u**3
    x = jnp.asarray(rng.normal(size=(3, 6)))
    jacobian = jax.vmap(jax.jacfwd(lambda row: head(row[None], contexts(row[None]))[0]))(x)
    slopes = jnp.sum(jnp.diagonal(jacobian, axis1=1, axis2=2), axis=1)
    loss = composite_score_matching(head, contexts, x)
    squares = jnp.sum(head(x, contexts(x)) ** 2, axis=1) / 2
    # Both are sums of six terms of double precision.
    np.testing.assert_allclose(loss - squares, slopes, atol=1e-12)
    rows = jnp.sum(jacobian, axis=(1, 2))  # what a derivative through the contexts would give
    assert np.min(np.abs(rows - slopes)) > 1e-2


def test_the_loss_does_not_depend_on_the_order_of_columns():
    order = np.array([2, 0, 3, 1])
    x = draws(SIGMA, 8)
    back = np.argsort(order)
    permuted_contexts = lambda y: TRUE.contexts(y[:, back])[:, order]
    values = composite_score_matching(gaussian_head, permuted_contexts, jnp.asarray(x[:, order]))
    np.testing.assert_allclose(values, losses(TRUE, x), rtol=1e-6, atol=1e-6)  # sums reordered


def test_weights_of_the_context_make_the_loss_independent_of_units():
    x, units = draws(SIGMA, 8), np.array([1.0, 10.0, 0.1, 3.0], np.float32)
    scaled = Conditionals(OTHER.weights * units[:, None] / units[None], OTHER.variances * units**2)
    weighted = lambda model, x: composite_score_matching(
        gaussian_head, model.contexts, jnp.asarray(x), weight=lambda c: c[..., 1]
    )
    # Products and quotients of single precision.
    np.testing.assert_allclose(
        weighted(scaled, x * units[None]), weighted(OTHER, x), rtol=1e-4, atol=1e-4
    )
    assert np.ptp(losses(scaled, x * units[None]) - losses(OTHER, x)) > 1


@pytest.mark.parametrize("noisy_context", [False, True])
def test_denoising_has_the_minimum_of_its_context(noisy_context):
    # Clean contexts: variances V + sigma^2; noisy ones: those of the covariance + sigma^2 I. The
    # minimum is half the sum of 1 - sigma^2 / variance, in units of sigma^2.
    sigma = 0.7
    if noisy_context:
        model = Conditionals.of(SIGMA + sigma**2 * np.eye(DIM))
        variances, noise = model.variances, 0.0
    else:
        model, noise = TRUE, sigma
        variances = model.variances + sigma**2
    head = lambda u, c, s: gaussian_head(u, c, noise)
    x = jnp.asarray(draws(SIGMA, NUM))
    options = {"sigma": jnp.full(NUM, sigma), "noisy_context": noisy_context}
    values = np.asarray(denoising_composite(head, model.contexts, jax.random.key(0), x, **options))
    minimum = np.sum(1 - sigma**2 / variances) / 2
    assert abs(values.mean() - minimum) < 4 * values.std() / np.sqrt(NUM)  # 1 in 16,000
    worse = denoising_composite(
        lambda u, c, s: 0.9 * head(u, c, s), model.contexts, jax.random.key(0), x, **options
    )
    assert worse.mean() > values.mean()


def test_levels_may_differ_by_dimension_and_rows_have_their_own_noise():
    x = jnp.asarray(draws(SIGMA, 5))
    sigma = jnp.linspace(0.1, 1.0, 5 * DIM).reshape(5, DIM)
    head = lambda u, c, s: gaussian_head(u, c, s)
    keys = row_keys(jax.random.key(1), 5)
    together = denoising_composite(head, TRUE.contexts, keys, x, sigma=sigma)
    alone = denoising_composite(head, TRUE.contexts, keys[2:3], x[2:3], sigma=sigma[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-6)  # one sum, ordered otherwise


def test_repeated_values_have_no_lower_bound():
    # A score that is steeper around a value that all data have makes the loss as low as one likes.
    zeros = jnp.zeros((2, DIM))
    at = lambda slope: composite_score_matching(lambda u, c: -slope * u, TRUE.contexts, zeros)
    np.testing.assert_allclose(at(100.0), -100.0 * DIM)
