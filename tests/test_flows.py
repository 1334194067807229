# SPDX-License-Identifier: Apache-2.0
"""MAF and RealNVP: bijections whose densities are those of their Jacobians, and their fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scorejax.density import fitting, made, maf, realnvp
from scorejax.density.fitting import Training
from scorejax.density.normalised import masked_units
from scorejax.models.maf import MaskedAutoregressiveFlow
from scorejax.models.realnvp import ActNorm, InvertibleLinear, RealNVP
from scorejax.numerics import gaussian_log_prob
from scorejax.random import row_keys
from tests.random_variables import random_variables
from tests.slow import slow_where

RNG = jax.random.key(0)


def some_flow(kind, dim):
    small = {"num_blocks": 2, "hidden": 6, "num_hidden": 1}
    flow = kind(dim, **small)
    return flow, random_variables(flow, jnp.ones((2, dim)), seed=0, mean=0.0, std=0.4)


@pytest.mark.parametrize(("kind", "dim"), [(MaskedAutoregressiveFlow, 3), (RealNVP, 3)])
def test_the_inverse_undoes_the_flow_and_its_jacobian_is_the_determinant(x64, kind, dim):
    # Oracle 11.
    flow, variables = some_flow(kind, dim)
    x = np.random.default_rng(0).normal(0, 2, (4, dim))
    forward = lambda x: flow.apply(variables, x[None], method="forward")[0][0]
    both = lambda x: (flow.apply(variables, x, method="forward"), flow.apply(variables, x))
    (z, log_det), found = jax.jit(both)(x)
    # Products and quotients by scales above e^-4, in double precision.
    inverse = jax.jit(lambda z: flow.apply(variables, z, method="inverse"))
    np.testing.assert_allclose(inverse(z), x, atol=1e-11)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(forward)))(x)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], log_det, rtol=1e-10)
    np.testing.assert_allclose(found, gaussian_log_prob(z, 1.0) + log_det, rtol=1e-12)


@pytest.mark.parametrize("kind", [MaskedAutoregressiveFlow, RealNVP])
def test_the_density_integrates_to_one(x64, kind):
    # Oracle 11, by the trapezoidal rule on a smooth density. Outside of the square lies no code
    # within 5 of the origin: rows go at most e^-0.5 closer to it here.
    flow, variables = some_flow(kind, 2)
    variables = jax.tree.map(lambda leaf: leaf / 4, variables)
    axis = np.arange(-12, 12, 0.1)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.exp(jax.jit(flow.apply)(variables, x)).sum() * 0.1**2
    assert abs(total - 1) < 1e-4


def test_a_new_masked_flow_is_the_identity():
    flow = MaskedAutoregressiveFlow(3, num_blocks=2, hidden=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    new = jax.jit(lambda x: flow.apply(flow.init(RNG, x), x, method="forward"))
    z, log_det = new(x)
    np.testing.assert_array_equal(z, x)
    np.testing.assert_array_equal(log_det, 0)


def test_actnorm_standardises_the_batch_that_initialises_it(x64):
    x = np.random.default_rng(0).normal(3, 2, (50, 4))
    layer = ActNorm()
    y, log_det = layer.apply(layer.init(RNG, jnp.asarray(x)), x)
    np.testing.assert_allclose(np.mean(y, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(y, axis=0), 1, rtol=1e-5)  # 1e-6 is added to variances
    np.testing.assert_allclose(log_det, -np.log(x.std(axis=0)).sum(), rtol=1e-5)


def test_a_new_linear_layer_is_a_rotation(x64):
    layer, x = InvertibleLinear(3), np.eye(5)
    y, log_det = layer.apply(layer.init(RNG, jnp.asarray(x)), x)
    np.testing.assert_allclose(y @ y.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(log_det, 0, atol=1e-12)


def test_a_linear_flow_is_the_gaussian_that_it_whitens(x64):
    # Oracle 11. With L and U's diagonal from the Cholesky factor of P^T (inverse covariance) P,
    # y = x P L U has covariance I, whatever the signs on U's diagonal.
    rng, dim = np.random.default_rng(0), 4
    root = rng.normal(size=(dim, dim))
    layer, x = InvertibleLinear(1), rng.normal(size=(6, dim))
    variables = layer.init(RNG, jnp.asarray(x))
    order = layer.apply(variables, dim, method="_factors")[0]
    precision = np.linalg.inv(root @ root.T)[np.ix_(order, order)]
    factor = np.linalg.cholesky(precision)
    diagonal = np.diag(factor)
    params = {"log_diagonal": np.log(diagonal), "lower": factor / diagonal, "upper": 0 * root}
    y, log_det = layer.apply({"params": params}, x)
    expected = multivariate_normal(np.zeros(dim), root @ root.T).logpdf(x)
    np.testing.assert_allclose(gaussian_log_prob(y, 1.0) + log_det, expected, rtol=1e-10)


TINY = Training(num_epochs=40, batch_size=64, learning_rate=5e-3, patience=40)


@pytest.mark.deep
@pytest.mark.parametrize("density", slow_where(lambda m: m is realnvp, [maf, realnvp]))
def test_a_fit_finds_a_gaussian_and_draws_from_it(density):
    # A network of 40 epochs of 28 steps is within 0.05 nats a row of the truth, which the mean over
    # 1000 new rows would tell from 0 (the difference of log-densities varies less than by 0.3).
    covariance = np.array([[1.0, 0.8], [0.8, 1.0]])
    rng, truth = np.random.default_rng(0), multivariate_normal([0.3, 0], covariance)
    sizes = {"num_blocks": 1, "hidden": 8, "num_hidden": 1}
    params = density.fit(RNG, truth.rvs(2000, random_state=rng), **sizes, training=TINY)
    new = truth.rvs(1000, random_state=rng)
    found = density.log_prob(params, jnp.asarray(new, jnp.float32))
    assert abs(np.mean(truth.logpdf(new) - found)) < 0.05
    sample = jax.jit(lambda rng: density.sample(rng, params, 1000))
    drawn = sample(RNG)
    # Five standard errors of a variance, and what the fit may be off.
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=5 * np.sqrt(2 / 1000) + 0.1)
    # A row is a function of its own key, wherever it stands.
    np.testing.assert_allclose(sample(row_keys(RNG, 1000)[::-1])[::-1], drawn, atol=1e-5)


def test_training_returns_the_variables_of_the_lowest_held_out_loss():
    # The loss (v - 3)^2 of one number, whatever the rows; steps of a hundred miss it for long.
    network = ActNorm()
    losses = lambda network, v, rng, x: 0 * x[:, 0] + (v - 3.0) ** 2
    options = Training(num_epochs=5, learning_rate=2.0, final_rate=1.9, patience=2)
    found = fitting.minimize(RNG, network, jnp.asarray(2.5), losses, jnp.ones((20, 1)), options)
    np.testing.assert_allclose(found.held_out_loss, (found.variables - 3.0) ** 2, rtol=1e-6)
    assert found.epochs <= 3


def test_options_and_rows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"dim needs to be at least 2, for two halves; got 1"):
        RealNVP(1)
    with pytest.raises(ValueError, match="max_log_scale needs to be a positive number; got 0"):
        MaskedAutoregressiveFlow(3, max_log_scale=0)
    with pytest.raises(ValueError, match="patience needs to be at least 1; got 0"):
        Training(patience=0)
    with pytest.raises(ValueError, match=r"held_out needs to lie in \(0, 1\); got 1.5"):
        Training(held_out=1.5)
    with pytest.raises(ValueError, match="10 of 10 rows have others"):
        maf.fit(RNG, np.full((10, 2), np.nan))
    for density in (maf, made):
        with pytest.raises(ValueError, match=r"hidden needs to be at least 4 .* 5 coord.*; got 3"):
            density.fit(RNG, np.random.default_rng(0).normal(size=(10, 5)), hidden=3)
    assert [masked_units(None, 64), masked_units(None, 512), masked_units(4, 5)] == [256, 512, 4]


def test_a_loss_that_is_nowhere_finite_is_an_error():
    losses = lambda network, v, rng, x: x[:, 0] * v / 0.0
    with pytest.raises(
        ValueError, match=r"finite held-out loss; got nan.*lower learning_rate=0.001"
    ):
        fitting.minimize(RNG, ActNorm(), jnp.asarray(0.0), losses, jnp.ones((20, 1)), Training())
