# SPDX-License-Identifier: Apache-2.0
"""The kernel family: inner weights that minimise every loss, losses that are the objectives'."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from scorejax.density import kernel_exponential_family as family
from scorejax.models.deep_kernel import DeepKernel, squared_distances
from scorejax.numerics import gaussian_log_prob
from scorejax.objectives import finite_difference, sliced
from scorejax.objectives.directions import sphere
from tests.random_variables import random_variables

pytestmark = pytest.mark.usefixtures("x64")

DIM, NUM, EPS, SIGMA, RIDGE = 3, 40, 0.1, 0.5, 0.05
rng = np.random.default_rng(0)
X, NOISE = rng.normal(size=(2, NUM, DIM))  # float64, as are U and the rest
POINTS = rng.normal(size=(6, DIM))


def terms(x):
    """Gaussian kernels of width 1 and log q_0 of deviation 2."""
    kernels = jnp.exp(-squared_distances(x, POINTS) / 2)
    return jnp.concatenate([kernels, gaussian_log_prob(x, 2.0)[:, None]], axis=1)


U = np.asarray(sphere(jax.random.key(0), X.shape, jnp.float32), np.float64)
ALPHA = rng.normal(size=6)
FUNCTIONALS = {
    "sm": lambda x, u, noise: family.exact(terms, x),
    "ssm": lambda x, u, noise: family.sliced(terms, x, u),
    "fd_ssm": lambda x, u, noise: family.fd_sliced(terms, x, u, eps=EPS),
    "dsm": lambda x, u, noise: family.denoising(terms, x, noise, sigma=SIGMA),
    "fd_dsm": lambda x, u, noise: family.fd_denoising(terms, x, noise, u, sigma=SIGMA, eps=EPS),
}


@functools.cache
def _functionals(name):
    return jax.jit(FUNCTIONALS[name])(X, U, NOISE)


def energy(x):
    return -family.log_density(terms, jnp.asarray(ALPHA), x)


def denoising(x):
    noisy = x + SIGMA * NOISE
    return jnp.sum((sliced.score_of(energy)(noisy) + NOISE / SIGMA) ** 2, axis=1) / 2


OBJECTIVES = {
    "sm": lambda x: sliced.exact_score_matching(energy, jax.random.key(0), x),
    "ssm": lambda x: sliced.sliced_along(energy, jnp.asarray(U[None]), x),
    "fd_ssm": lambda x: finite_difference.fd_sliced_along(energy, jnp.asarray(U[None]), x, eps=EPS),
    "dsm": denoising,
    "fd_dsm": lambda x: finite_difference.fd_denoising_along(
        energy, jnp.asarray(U[None]), jnp.asarray(SIGMA * NOISE), x, target_sigma=SIGMA, eps=EPS
    ),
}


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_a_loss_of_functionals_is_the_objective_of_the_energy(name):
    found = family.loss(_functionals(name), jnp.asarray(ALPHA))
    # Sums in another order, and second differences of numbers of size 1 over 0.01: 1e-9.
    np.testing.assert_allclose(
        found, jax.jit(OBJECTIVES[name])(jnp.asarray(X)), rtol=1e-9, atol=1e-9
    )


@jax.jit
@jax.value_and_grad
def regularised(alpha, found):
    return jnp.mean(family.loss(found, alpha)) + RIDGE * jnp.sum(alpha**2) / 2


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_inner_weights_minimise_the_loss(name):
    found = _functionals(name)
    alpha = family.inner_weights(found, RIDGE)
    np.testing.assert_allclose(regularised(alpha, found)[1], 0, atol=1e-12)
    value = lambda a: jax.tree.map(np.asarray, regularised(a, found))
    direct = minimize(value, np.zeros(6), jac=True, method="BFGS")
    # BFGS stops at a gradient of 1e-5, and the curvature is at least RIDGE.
    np.testing.assert_allclose(alpha, direct.x, atol=1e-5 * math.sqrt(6) / RIDGE)


def test_inner_weights_are_the_closed_form_of_the_paper():
    # Proposition 1 by hand: -(G + ridge)^-1 b from the derivatives of a Gaussian kernel of width 1,
    # dk = (z - x) k and lap k = (|x - z|^2 - d) k, and d log q_0 = -x / 4.
    off = POINTS[None] - X[:, None]
    k = np.exp(-np.sum(off**2, axis=-1) / 2)
    dk, lap = off * k[..., None], (np.sum(off**2, axis=-1) - DIM) * k
    gram = np.einsum("nid,njd->ij", dk, dk) / NUM
    linear = (lap + np.einsum("nid,nd->ni", dk, -X / 4)).mean(axis=0)
    expected = -np.linalg.solve(gram + RIDGE * np.eye(6), linear)
    alpha = family.inner_weights(_functionals("sm"), RIDGE)
    np.testing.assert_allclose(alpha, expected, rtol=1e-9)


def test_scaled_functionals_belong_to_the_scaled_loss():
    found = _functionals("sm")
    expected = 3 * family.loss(found, jnp.asarray(ALPHA))
    scaled = family.loss(family.scaled(found, 3.0), jnp.asarray(ALPHA))
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


def _rms_error(terms, alpha, test, mean=0.5):
    score = jax.grad(lambda y: family.log_density(terms, alpha, y).sum())(test)
    return jnp.sqrt(jnp.mean((score - (mean - test)) ** 2))


def test_of_gaussian_data_the_family_learns_the_score():
    # N(1/2, 1) from 4000 draws, 9 kernels of width 1.2 on a grid. Some 7 of their weights are
    # fitted to noise of size 1: an error of sqrt(2 * 7 / 4000) = 6 % of the score's rms, 1.
    mean, generator = 0.5, np.random.default_rng(1)
    x = jnp.asarray(mean + generator.normal(size=(4000, 1)))
    grid = np.linspace(-3.5, 3.5, 9)[:, None] + mean
    u = jnp.ones_like(x)

    def terms(x):
        kernels = jnp.exp(-squared_distances(x, grid) / (2 * 1.2**2))
        return jnp.concatenate([kernels, gaussian_log_prob(x, 2.0)[:, None]], axis=1)

    test = jnp.asarray(mean + generator.normal(size=(500, 1)))

    @jax.jit
    def errors(x):
        both = family.sliced(terms, x, u), family.fd_sliced(terms, x, u, eps=0.05)
        return [_rms_error(terms, family.inner_weights(found, 1e-5), test) for found in both]

    assert max(errors(x)) < 0.1


@pytest.mark.deep
def test_the_deep_kernel_is_a_mixture_of_gaussian_kernels_of_features():
    kernel = DeepKernel(2, num_inducing=4, features=3, num_hidden=1, log_widths=(0.0, 0.7))
    x = np.random.default_rng(4).normal(size=(5, 2))
    variables = random_variables(kernel, x, seed=5, mean=0.0, std=0.5)
    p = variables["params"]
    softplus = lambda h: np.log1p(np.exp(h))
    affine = lambda layer, h: h @ layer["kernel"] + layer["bias"]
    shares = np.exp(p["log_share"]) / np.exp(p["log_share"]).sum()
    expected = 0
    for r in range(2):
        q = p[f"features_{r}"]
        phi = lambda x, q=q: (
            affine(q["out"], softplus(affine(q["hidden_0"], x))) + affine(q["skip"], x)
        )
        square = ((phi(x)[:, None] - phi(p["inducing"])[None]) ** 2).mean(-1)
        expected = expected + shares[r] * np.exp(-square / (2 * np.exp(2 * p["log_width"][r])))
    np.testing.assert_allclose(kernel.apply(variables, x), expected, rtol=1e-10)
    fresh = kernel.init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(fresh["log_width"], [0.0, 0.7])
