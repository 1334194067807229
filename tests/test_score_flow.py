# SPDX-License-Identifier: Apache-2.0
"""The density of a score model's flow, where the score is known, and as `likelihood` has it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scorejax import likelihood
from scorejax.density import score_flow
from scorejax.density.fitting import Training
from scorejax.models.vector_field import VectorField
from scorejax.numerics import gaussian_log_prob
from scorejax.random import row_keys
from tests.oracles import Gaussian
from tests.random_variables import random_variables

RNG = jax.random.key(0)
SDE = score_flow.SDE
MEAN, VARIANCES = np.array([0.5, -1.0, 0.0]), np.array([0.25, 1.0, 2.0])
DATA = Gaussian(MEAN, np.diag(VARIANCES))


class Exact(nn.Module):
    """F of Gaussian rows: (std / scale) (score + x)."""

    dim: int = 3

    def __call__(self, x, label):
        ratio = jnp.exp(label / score_flow.LABEL_SCALE)[:, None]
        scale = 1 / jnp.sqrt(1 + ratio**2)
        mean, variances = jnp.asarray(MEAN, x.dtype)[None], jnp.asarray(VARIANCES, x.dtype)[None]
        score = -(x - scale * mean) / (scale**2 * (variances + ratio**2))
        return ratio * (score + x)

    def trace_kernel(self):
        return jnp.zeros((1, 1))

    def with_divergence(self, x, label, trace_kernel):
        one = lambda x, label: self(x[None], label[None])[0]
        return self(x, label), jnp.trace(jax.vmap(jax.jacfwd(one))(x, label), axis1=1, axis2=2)


def exact_flow():
    return score_flow.ScoreFlow({}, jnp.zeros(()), Exact(), SDE)


def some_flow(dim=3, std=0.3):
    network = VectorField(dim, 8, 4)
    variables = random_variables(
        network, jnp.ones((1, dim)), jnp.ones(1), seed=0, mean=0.0, std=std
    )
    return score_flow.ScoreFlow(variables, jnp.zeros(()), network, SDE)


def rows(num, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, 3)))


def test_the_divergence_is_the_trace_of_the_jacobian(x64):
    network, variables = some_flow().network, some_flow(std=0.7).variables
    x, label = rows(4), jnp.linspace(-4, 4, 4)
    kernel = network.apply(variables, method="trace_kernel")
    both = lambda x: network.apply(variables, x, label, kernel, method="with_divergence")
    found = jax.jit(both)(x)
    one = lambda x, label: network.apply(variables, x[None], label[None])[0]
    jacobian = jax.jit(jax.vmap(jax.jacfwd(one)))(x, label)
    np.testing.assert_allclose(found[0], network.apply(variables, x, label), rtol=1e-12)
    np.testing.assert_allclose(found[1], np.trace(jacobian, axis1=1, axis2=2), rtol=1e-10)


def test_at_the_score_of_a_gaussian_it_is_the_density_of_the_gaussian(x64):
    x = rows(5)
    found = jax.jit(lambda x: score_flow.log_prob(exact_flow(), x, rtol=1e-8, atol=1e-8))(x)
    # The solver's tolerance, a hundredfold for its steps; the prior at t_max is that of the flow.
    np.testing.assert_allclose(found, DATA.flow_log_prob(SDE, x, SDE.t_min), atol=1e-6)
    truth = DATA.log_prob(SDE, x, jnp.full(5, SDE.t_min))
    np.testing.assert_allclose(found, truth, atol=0.02)  # scale at t_max is 0.0066: mean and all


def test_samples_at_the_score_of_a_gaussian_have_its_moments():
    num = 4000
    sample = jax.jit(lambda rng: score_flow.sample(rng, exact_flow(), num))
    x = np.asarray(sample(RNG), float)
    mean, covariance = DATA.moments(SDE, SDE.t_min)
    std = np.sqrt(np.diag(covariance))
    # Five standard errors, and 0.01 for the prior's, which is not quite the flow's at t_max.
    assert (np.abs(x.mean(axis=0) - mean) < 5 * std / np.sqrt(num) + 0.01).all()
    assert (np.abs(np.cov(x.T) - covariance) < 5 * np.sqrt(2 / num) * np.outer(std, std)).all()
    # A row is a function of its own key, wherever it stands.
    np.testing.assert_allclose(sample(row_keys(RNG, num)[::-1])[::-1], x, atol=1e-4)


def test_it_is_the_likelihood_of_the_probability_flow_in_time(x64):
    flow, x = some_flow(), rows(4)
    options = {"rtol": 1e-7, "atol": 1e-7}
    found = jax.jit(lambda x: score_flow.log_prob(flow, x, **options))(x)
    score = score_flow.score_fn(flow)
    exact = lambda x: likelihood.log_prob(
        RNG, SDE, score, x, divergence=likelihood.exact, **options
    )
    assert np.abs(found - gaussian_log_prob(x, 1.0)).min() > 0.01
    np.testing.assert_allclose(found, jax.jit(exact)(x).log_prob, atol=1e-5)


def test_the_gradient_is_that_of_differences(x64):
    flow, x, along = some_flow(), rows(1), rows(1, seed=1)
    value = jax.jit(lambda s: score_flow.log_prob(flow, x + s * along, rtol=1e-9, atol=1e-9)[0])
    # The difference errs by step^2, and by the tolerance over the step.
    step = 1e-3
    difference = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), difference, rtol=1e-4)


def test_a_new_network_is_the_standard_normal_density():
    network, x = VectorField(3, 4, 4), rows(2).astype(jnp.float32)
    flow = score_flow.ScoreFlow(jax.jit(network.init)(RNG, x, x[:, 0]), jnp.zeros(()), network, SDE)
    found = jax.jit(score_flow.log_prob)(flow, x)
    # Weights of size 1e-5 in the linear term.
    np.testing.assert_allclose(found, gaussian_log_prob(x, 1.0), atol=1e-3)


def test_a_fit_finds_a_gaussian():
    # Within 0.1 nats a row: of a small network, and 0.01 by the mean over 300 new rows.
    rng, truth = np.random.default_rng(0), multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]])
    training = Training(num_epochs=60, batch_size=128, learning_rate=1e-2, patience=60)
    x = truth.rvs(2000, random_state=rng)
    flow = score_flow.fit(RNG, x, hidden=16, training=training)
    new = truth.rvs(300, random_state=rng)
    found = jax.jit(score_flow.log_prob)(flow, jnp.asarray(new, jnp.float32))
    assert abs(np.mean(truth.logpdf(new) - found)) < 0.1


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="embedding_features needs to be at least 4; got 2"):
        VectorField(3, 4, 2)
