# SPDX-License-Identifier: Apache-2.0
"""NICE: a bijection whose density is what its Jacobian says, and its score-matching loss."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.models.nice import NICE, logistic_log_prob
from scorejax.objectives.finite_difference import fd_sliced
from scorejax.objectives.sliced import exact_score_matching
from tests.random_variables import random_variables

pytestmark = pytest.mark.usefixtures("x64")


def some_flow(dim, seed=0):
    flow = NICE(dim, num_couplings=3, hidden=8, num_hidden=1)
    return flow, random_variables(flow, jnp.ones((1, dim)), seed=seed, mean=0.0, std=0.5)


@pytest.mark.parametrize("dim", [2, 5])
def test_the_inverse_undoes_the_flow_and_its_jacobian_is_the_scale(dim):
    flow, variables = some_flow(dim)
    x = np.random.default_rng(0).normal(0, 2, (3, dim))
    forward = lambda x: flow.apply(variables, x[None], method="forward")[0]
    z, jacobian = jax.jit(lambda x: (jax.vmap(forward)(x), jax.vmap(jax.jacfwd(forward))(x)))(x)
    # Additions and their opposites, of numbers below 100: 1e-12 is a hundred roundings.
    np.testing.assert_allclose(flow.apply(variables, z, method="inverse"), x, atol=1e-12)
    log_det = np.linalg.slogdet(jacobian)[1]
    expected = logistic_log_prob(z) + log_det
    np.testing.assert_allclose(flow.apply(variables, x), expected, rtol=1e-12)


def test_the_density_integrates_to_one():
    flow, variables = some_flow(2)
    # The trapezoidal rule on a smooth density converges faster than any power of the step: at 0.2,
    # a ninth of the logistic's width, its error is below 1e-7. Outside of the square are less than
    # 2 exp(-25 e^-1.6) of the mass, latent coordinates being at least e^-1.6 of the data's.
    axis = np.arange(-50, 50, 0.2)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert np.exp(variables["params"]["log_scale"]).min() > np.exp(-1.6)
    total = np.exp(flow.apply(variables, x)).sum() * 0.2**2
    assert abs(total - 1) < 1e-4


def test_samples_have_the_density_that_the_flow_says():
    # Through the flow they are logistic, of mean 0 and variance pi^2 / 3; the kurtosis 4.2 gives
    # the mean square of n draws a relative error of sqrt(3.2 / n): five of those.
    flow, variables = some_flow(6)
    x = flow.apply(variables, jax.random.key(0), (4000, 2, 3), method="sample")
    z = np.asarray(flow.apply(variables, x, method="forward"))
    assert x.shape == (4000, 2, 3)
    np.testing.assert_allclose(z.var(axis=0), np.pi**2 / 3, rtol=5 * math.sqrt(3.2 / 4000))


def test_score_matching_of_the_flow_by_its_hessian_is_d_times_the_mean_of_fd_ssm():
    # Oracle 12: 4 standard errors, and the O(eps^2) bias of 1e-3 is below a tenth of one.
    dim, num = 5, 4000
    flow, variables = some_flow(dim)
    energy = lambda x: -flow.apply(variables, x)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, dim)))
    exact = jax.jit(lambda x: exact_score_matching(energy, jax.random.key(0), x))(x)
    sliced = jax.jit(lambda x: fd_sliced(energy, jax.random.key(1), x, eps=1e-3))
    found = dim * np.asarray(sliced(jnp.repeat(x, num, axis=0)))
    found = found.reshape(2, num)
    error = found.std(axis=1, ddof=1) / math.sqrt(num)
    assert (np.abs(found.mean(axis=1) - exact) < 4 * error).all()
    assert (error < 0.2).all()


def test_a_new_flow_is_the_identity_up_to_order():
    flow = NICE(4)
    x = np.random.default_rng(0).normal(size=(2, 4))
    small = flow.clone(hidden=8, num_hidden=1)
    variables = small.init(jax.random.key(0), jnp.asarray(x))
    z = small.apply(variables, x, method="forward")
    np.testing.assert_allclose(z, x[:, [0, 2, 1, 3]], atol=1e-4)  # weights of size 1e-5


def test_one_coordinate_has_no_other_to_move():
    with pytest.raises(ValueError, match="dim of at least 2; got 1"):
        NICE(1)


def test_the_published_size_has_its_number_of_parameters():
    flow = NICE(784)
    shapes = jax.eval_shape(flow.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 784), "float32"))
    # Four couplings, each 392 -> five layers of 1000 -> 392 with biases, and a scale a pixel.
    expected = 4 * (393 * 1000 + 4 * 1001 * 1000 + 1001 * 392) + 784
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
