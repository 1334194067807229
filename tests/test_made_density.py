# SPDX-License-Identifier: Apache-2.0
"""MADE with mixtures as a density: normalised, drawn from as it says, and fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.density import made
from scorejax.density.fitting import Training
from scorejax.density.normalised import NormalisedDensity
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.univariate import MixtureHead
from scorejax.random import row_keys
from tests.random_variables import random_variables

RNG = jax.random.key(0)


def some_density(dim=2):
    network = AutoregressiveModel(MaskedTrunk(8, 1, 6), MixtureHead(2))
    variables = random_variables(network, jnp.ones((1, dim)), seed=0, mean=0.0, std=0.5)
    return NormalisedDensity(variables, jnp.zeros(()), network, dim)


def test_the_density_integrates_to_one(x64):
    # Smooth, with scales above 0.1: the trapezoidal rule at half of that errs by less than 1e-6.
    axis = np.arange(-12, 12, 0.05)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.exp(jax.jit(made.log_prob)(some_density(), x)).sum() * 0.05**2
    assert abs(total - 1) < 1e-3


def test_samples_follow_the_conditionals():
    params, num = some_density(3), 2000
    sample = jax.jit(lambda rng: made.sample(rng, params, num))
    x = sample(RNG)
    cdfs = lambda model, x: model.cdf(x, model.contexts(x))
    u = np.asarray(jax.jit(lambda x: params.network.apply(params.variables, x, method=cdfs))(x))
    # Uniform in each dimension given those before it; by the test of all three, at 1e-4.
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4 / 3
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 5 / np.sqrt(num)
    # A row is a function of its own key, wherever it stands.
    np.testing.assert_allclose(sample(row_keys(RNG, num)[::-1])[::-1], x, atol=1e-5)


@pytest.mark.slow
def test_a_fit_finds_two_modes_that_depend_on_each_other():
    # x_1 = +-1 and x_2 = x_1, each with noise of 0.2: half a nat more than a Gaussian can say.
    rng = np.random.default_rng(0)
    draw = lambda num: rng.choice([-1.0, 1.0], (num, 1)) + 0.2 * rng.normal(size=(num, 2))
    training = Training(num_epochs=30, batch_size=64, learning_rate=1e-2, patience=30)
    options = {"num_components": 2, "hidden": 8, "num_hidden": 1, "training": training}
    params, new = made.fit(RNG, draw(2000), **options), draw(1000)
    modes = [stats.multivariate_normal([m, m], 0.04 * np.eye(2)).pdf(new) for m in (-1, 1)]
    found = jax.jit(made.log_prob)(params, jnp.asarray(new, jnp.float32))
    # Of networks of 8 units after 30 epochs; the mean over rows has an error of 0.01.
    assert abs(np.mean(np.log(np.mean(modes, axis=0)) - found)) < 0.1
    np.testing.assert_allclose(params.held_out_log_prob, np.mean(found), atol=0.2)


def test_a_linear_network_of_one_component_is_a_gaussian(x64):
    # Units far above 0, by their biases, are linear in x.
    dim = 3
    network = AutoregressiveModel(MaskedTrunk(6, 1, 3, activation="softplus"), MixtureHead(1))
    variables = random_variables(network, jnp.ones((1, dim)), seed=0, mean=0.0, std=0.3)
    trunk, head = (variables["params"][name] for name in ("trunk", "univariate"))
    trunk["hidden_0_bias"] += 60.0
    head["out"]["kernel"][:, 2] = 0.0  # one scale for each dimension
    params = NormalisedDensity(variables, jnp.zeros(()), network, dim)
    components = lambda model, x: model.univariate.components(model.contexts(x))

    @jax.jit
    def law(x):
        mean = lambda x: network.apply(variables, x[None], method=components).means[0, :, 0]
        scales = network.apply(variables, x[None], method=components).scales[0, :, 0]
        return mean(x), jax.jacfwd(mean)(x), scales

    # x = shift + slope x + scales z, z ~ N(0, I).
    shift, slope, scales = (np.asarray(value) for value in law(jnp.zeros(dim)))
    assert np.abs(slope[np.tril_indices(dim, -1)]).min() > 1e-3
    np.testing.assert_array_equal(np.triu(slope), 0)
    root = np.linalg.inv(np.eye(dim) - slope)
    gaussian = stats.multivariate_normal(root @ shift, (root * scales**2) @ root.T)
    x = gaussian.rvs(20, random_state=0)
    np.testing.assert_allclose(jax.jit(made.log_prob)(params, x), gaussian.logpdf(x), atol=1e-6)
