# SPDX-License-Identifier: Apache-2.0
"""Guided scores and samples against the exact conditional laws of Gaussians and mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture
from scipy import stats

from scorejax.guidance import class_guided, guided, pseudoinverse_guided
from scorejax.linear_operators import average_pool_operator, mask_operator
from scorejax.samplers.few_step import heun
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.slow import slow_subvp

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=10.0)]
by_name = pytest.mark.parametrize("sde", slow_subvp(SDES), ids=lambda sde: sde.name)
WEIGHTS, STD = np.array([0.5, 0.3, 0.2]), 0.4
MEANS = np.array([[-1.0, -0.5], [1.0, 0.0], [0.0, 1.2]])
MIXTURE = GaussianMixture(WEIGHTS, MEANS, np.full(3, STD))


def exact_logits(sde):
    """Log-probabilities of the components given x_t, up to a constant."""
    return lambda x, t: MIXTURE.component_log_probs(sde, x, t)


@by_name
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_guided_score_of_a_mixture_is_that_of_its_component(x64, sde, guidance):
    # By Bayes' rule the gradient of log p(k | x_t) is the component's score less the mixture's.
    x = jax.random.normal(jax.random.key(0), (6, 2))
    t = jnp.linspace(0.01, 1.0, 6)
    label = jnp.array([0, 1, 2, 0, 1, 2])
    score_fn = MIXTURE.score_fn(sde)
    value = class_guided(score_fn, exact_logits(sde), label, guidance=guidance)(x, t)
    components = [Gaussian(mean, STD**2 * np.eye(2)).score_fn(sde)(x, t) for mean in MEANS]
    component = jnp.stack(components)[label, jnp.arange(6)]
    expected = (1 - guidance) * score_fn(x, t) + guidance * component
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-9)  # rounding of float64


@pytest.mark.deep
def test_samples_of_a_class_are_of_that_class():
    # Bayes' classifier of clean data names the class of a sample as often as that of exact draws of
    # the component; and without guidance the classes come as in the data. Two-sided binomial tests
    # at 1e-6 each, the share being known to a fifth of their error.
    sde, num = SDES[0], 600
    classify = lambda x: np.argmax(exact_logits(sde)(x, jnp.full(len(x), sde.t_min)), axis=1)
    label = jnp.repeat(jnp.arange(3), num)
    plain = MIXTURE.score_fn(sde)
    drawn = {}
    for name, score_fn in {
        "guided": class_guided(plain, exact_logits(sde), label),
        "plain": plain,
    }.items():
        draw = jax.jit(
            lambda rng, fn=score_fn: heun(rng, fn, (3 * num, 2), sde=sde, num_steps=40).x
        )
        drawn[name] = classify(draw(jax.random.key(0))).reshape(3, num)
    exact = classify(MIXTURE.sample(jax.random.key(2), 50_000))
    for k in range(3):
        component = jnp.asarray(MEANS[k][None], jnp.float32) + STD * jax.random.normal(
            jax.random.key(1), (50_000, 2)
        )
        share = np.mean(classify(component) == k)
        assert stats.binomtest(int((drawn["guided"][k] == k).sum()), num, share).pvalue > 1e-6
        among_all = int((drawn["plain"] == k).sum())
        assert stats.binomtest(among_all, 3 * num, np.mean(exact == k)).pvalue > 1e-6


def test_a_likelihood_of_no_slope_changes_nothing():
    score_fn = MIXTURE.score_fn(SDES[0])
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.array([0.1, 0.5, 1.0])
    value = guided(score_fn, lambda x, t: jnp.ones(len(x)), guidance=3.0)(x, t)
    np.testing.assert_array_equal(value, score_fn(x, t))


IMAGE = (4, 4, 1)
MEASUREMENTS = {
    "mask": mask_operator(np.asarray(np.random.default_rng(0).random(IMAGE) < 0.5, float)).forward,
    "pool": average_pool_operator(2).forward,
    # Unequal gains, and rows that overlap: no pseudo-inverse of its own.
    "matrix": lambda x: x.reshape(len(x), 16) @ jnp.asarray(MATRIX, x.dtype),
}
MATRIX = np.random.default_rng(2).normal(size=(16, 5))


def as_matrix(measure):
    """A (m, 16) of a measurement, column by column."""
    columns = measure(jnp.eye(16).reshape(16, *IMAGE))
    return np.asarray(columns.reshape(16, -1)).T


def posterior(prior, matrix, y, noise_std):
    """Mean and covariance of Gaussian data given y = A x + noise, one row of y."""
    gram = matrix @ prior.covariance @ matrix.T + noise_std**2 * np.eye(len(matrix))
    gain = prior.covariance @ matrix.T @ np.linalg.pinv(gram, rcond=1e-10)
    mean = prior.mean + gain @ (y - matrix @ prior.mean)
    return mean, prior.covariance - gain @ matrix @ prior.covariance


def flat_score(gaussian, sde):
    score = gaussian.score_fn(sde)
    return lambda x, t: score(x.reshape(len(x), -1), t).reshape(x.shape)


@pytest.mark.deep
@by_name
@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("noise_std", [0.1, 0.0])
def test_for_isotropic_data_the_guided_score_is_the_exact_one(x64, sde, name, noise_std):
    # Given y the data are Gaussian, and so is x_t: its score is known.
    prior, measure = Gaussian.isotropic(0.3, 0.5, 16), MEASUREMENTS[name]
    matrix = as_matrix(measure)
    data = prior.sample(jax.random.key(0), 3).reshape(3, *IMAGE)
    y = measure(data)
    guided_score = pseudoinverse_guided(
        flat_score(prior, sde), sde, measure, y, noise_std=noise_std, data_std=0.5
    )
    x, t = jax.random.normal(jax.random.key(1), (3, *IMAGE)), jnp.array([0.1, 0.4, 0.9])
    value = np.asarray(guided_score(x, t)).reshape(3, 16)
    for row in range(3):
        mean, covariance = posterior(prior, matrix, np.asarray(y[row]).ravel(), noise_std)
        exact = Gaussian(mean, covariance).score_fn(sde)
        expected = exact(x[row].reshape(1, 16), t[row][None])[0]
        # Conjugate gradients stop at 1e-5 of what is to be explained.
        np.testing.assert_allclose(value[row], expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.deep
def test_samples_given_a_noisy_measurement_have_the_exact_posterior():
    # Means and variances of 2000 draws: at five standard errors of 16 pixels each, one false alarm
    # in 50 000. Heun's own error in the variance, 2 % at 40 steps, is allowed for.
    sde, prior, measure = SDES[0], Gaussian.isotropic(0.0, 1.0, 16), MEASUREMENTS["pool"]
    data = prior.sample(jax.random.key(0), 1).reshape(1, *IMAGE)
    y = measure(data) + 0.3 * jax.random.normal(jax.random.key(1), (1, 2, 2, 1))
    num = 2000
    repeated = jnp.broadcast_to(y, (num, *y.shape[1:]))
    score_fn = pseudoinverse_guided(flat_score(prior, sde), sde, measure, repeated, noise_std=0.3)
    draw = jax.jit(lambda rng: heun(rng, score_fn, (num, *IMAGE), sde=sde, num_steps=40).x)
    x = np.asarray(draw(jax.random.key(2))).reshape(num, 16)
    mean, covariance = posterior(prior, as_matrix(measure), np.asarray(y).ravel(), 0.3)
    variance = np.diag(covariance)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / num) + 0.01)
    assert np.all(np.abs(x.var(0) / variance - 1) < 5 * np.sqrt(2 / num) + 0.02)


def test_for_correlated_data_it_is_biased_as_the_docstring_says():
    # The same with neighbours correlated at 0.9: the exact posterior mean of what is not measured
    # is missed, where for isotropic data it would be met.
    sde = SDES[0]
    distance = np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    prior = Gaussian(np.zeros(16), 0.9**distance)
    mask = np.zeros(IMAGE)
    mask[0] = 1
    measure = mask_operator(mask).forward
    y = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (500, *IMAGE))
    score_fn = pseudoinverse_guided(flat_score(prior, sde), sde, measure, y)
    draw = jax.jit(lambda rng: heun(rng, score_fn, (500, *IMAGE), sde=sde, num_steps=40).x)
    x = np.asarray(draw(jax.random.key(2))).reshape(500, 16)
    mean, _ = posterior(prior, as_matrix(measure), mask.ravel(), 0.0)
    assert np.abs(x[:, :4] - 1).max() < 0.1  # what is measured is met all the same
    bias = x.mean(0)[4:] - mean[4:]
    assert 0.3 < np.abs(bias).max() < 0.55  # measured 0.42 with an error of 0.03: too far towards y
