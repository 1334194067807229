# SPDX-License-Identifier: Apache-2.0
"""Entropy gradients against densities in closed form, and scores estimated from samples."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.objectives.composite import composite_score_matching
from scorejax.objectives.entropy_gradients import negative_entropy, spectral_scores, stein_scores

GENERATOR = np.random.default_rng(0)
A = GENERATOR.normal(size=(3, 3)) + 2 * np.eye(3)
LOWER = np.linalg.cholesky(A @ A.T)
CONDITIONALS = np.linalg.inv(LOWER) / np.diag(LOWER)[:, None]
"""Univariate scores of N(0, A A^T): s_d = -(row d of this) . z = -(x_d - w_d . x_<d) / V_d."""


def test_the_score_stands_in_for_the_gradient_of_the_entropy():
    # z = A noise has the entropy log |det A| + const and the score -(A A^T)^-1 z. With noise of
    # second moment I exactly, the mean of (B2) is exact: -A^-T is the gradient of -log |det A|.
    noise = whitened(50)

    def mean(a):
        inverse = jnp.linalg.inv(a @ a.T)
        score = lambda z: -z @ inverse
        return negative_entropy(score, noise @ a.T).mean()

    np.testing.assert_allclose(jax.grad(mean)(A), -np.linalg.inv(A).T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("whose", ["known", "learned"])
def test_univariate_scores_give_the_gradient_for_triangular_maps_alone(whose, x64):
    # z = L noise: the gradient of the entropy sum log L_dd is delta_ij / L_ii on and below the
    # diagonal. z = A noise, A = L Q: univariate scores give the rows Q_d / L_dd; the truth is A^-T.
    # Four standard errors of 200,000 draws in each entry. The learned scores are the linear
    # minimiser of composite score matching on as many other draws, exact to 4 / sqrt(200,000) too.
    num = 200_000
    noise = jnp.asarray(GENERATOR.normal(size=(num, 3)))
    other = jnp.asarray(GENERATOR.normal(size=(num, 3))) @ LOWER.T
    rows = CONDITIONALS if whose == "known" else np.asarray(fitted_conditionals(other))
    score = lambda z: -z @ rows.T

    @jax.jit
    def entropy_gradient(matrix):
        # -sum_d s_d z_d is linear in the matrix: its gradient at one draw is -s noise^T.
        each = -score(noise @ matrix.T)[:, :, None] * noise[:, None]
        whole = jax.grad(lambda m: -negative_entropy(score, noise @ m.T).mean())(matrix)
        return whole, each.std(axis=0) / math.sqrt(num)

    slack = 1 if whose == "known" else math.sqrt(2)  # draws of the fit and of the mean
    found, error = entropy_gradient(jnp.asarray(LOWER))
    below = np.tril_indices(3)
    off = (np.asarray(found) - np.diag(1 / np.diag(LOWER)))[below]
    assert (np.abs(off) < 4 * slack * np.asarray(error)[below]).all()
    found, error = entropy_gradient(jnp.asarray(A))
    rotation = np.linalg.solve(LOWER, A)
    assert (np.abs(found - rotation / np.diag(LOWER)[:, None]) < 4 * slack * error).all()
    truth = np.linalg.inv(A).T
    assert np.abs(found - truth)[:2].max() > 20 * np.asarray(error).max()
    # The last coordinate has no later ones; and the direction ascends.
    assert (np.abs(found - truth)[2] < 4 * slack * error[2]).all()
    assert np.sum(found * truth) > 0


def fitted_conditionals(z):
    """Rows of s_d = -(row d) . z, lower triangular, that minimise composite score matching on z.

    The head of a linear score is a_d u + c_d, so that the loss is quadratic: one Newton step.
    """
    entries = np.tril_indices(3)

    def loss(flat):
        rows = jnp.zeros((3, 3)).at[entries].set(flat)
        head = lambda u, c: -jnp.diag(rows)[None] * u - c[..., 0]
        contexts = lambda x: (x @ jnp.tril(rows, -1).T)[..., None]
        return composite_score_matching(head, contexts, z).mean()

    zero = jnp.zeros(6)
    step = jax.jit(lambda: jnp.linalg.solve(jax.hessian(loss)(zero), -jax.grad(loss)(zero)))
    return jnp.zeros((3, 3)).at[entries].set(step())


def test_estimated_scores_solve_steins_identity_with_a_ridge(x64):
    # sum_j k(z_i, z_j) S_j + ridge S_i + grad_{z_j} k(z_i, z_j) = 0, the gradients by JAX.
    z = jnp.asarray(GENERATOR.normal(size=(7, 2)))
    distances = np.linalg.norm(z[:, None] - z[None], axis=-1)
    width = np.median(distances[np.triu_indices(7, 1)])
    k = lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2) / (2 * width**2))
    pairs = lambda f: jax.vmap(lambda x: jax.vmap(lambda y: f(x, y))(z))(z)

    @jax.jit
    def left(z):
        s = stein_scores(z, ridge=0.01)
        return pairs(k) @ s + 0.01 * s + pairs(jax.grad(k, argnums=1)).sum(axis=1)

    np.testing.assert_allclose(left(z), 0.0, atol=1e-10)


def test_all_eigenfunctions_together_solve_steins_identity(x64):
    # With no ridge, and at the samples, where Nystrom's eigenfunctions are eigenvectors. Of seven
    # samples the kernel's condition number, about 1e3, leaves 1e-9.
    z = jnp.asarray(GENERATOR.normal(size=(7, 2)))
    both = jax.jit(lambda z: (stein_scores(z, ridge=0.0), spectral_scores(z, share=1.0)))(z)
    np.testing.assert_allclose(*both, rtol=1e-7, atol=1e-7)


def test_the_spectral_score_is_the_sum_over_eigenfunctions_of_the_paper(x64):
    # psi_j(x) = sqrt(m) / l_j sum_n u_nj k(x, z_n), b_j = -mean of grad psi_j, S = sum_j b_j psi_j
    # over the fewest j with 0.9 of the sum of l; written out with JAX's gradients.
    z, at = GENERATOR.normal(size=(12, 2)), GENERATOR.normal(size=(4, 2))
    squares = np.sum((z[:, None] - z[None]) ** 2, axis=-1)
    width = np.median(np.sqrt(squares)[np.triu_indices(12, 1)])
    k = lambda x: jnp.exp(-jnp.sum((x[None] - z) ** 2, axis=1) / (2 * width**2))
    values, vectors = np.linalg.eigh(np.exp(-squares / (2 * width**2)))
    values, vectors = values[::-1], vectors[:, ::-1]
    num = 1 + np.searchsorted(np.cumsum(values), 0.9 * values.sum())
    psi = lambda x: math.sqrt(12) * (k(x) @ vectors[:, :num]) / values[:num]
    assert 1 < num < 12

    @jax.jit
    def both(z, at):
        b = -jax.vmap(jax.jacfwd(psi))(z).mean(axis=0)
        return spectral_scores(z, at, share=0.9), jax.vmap(psi)(at) @ b

    np.testing.assert_allclose(*both(jnp.asarray(z), jnp.asarray(at)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scores", [stein_scores, spectral_scores])
def test_estimated_scores_turn_and_move_with_the_samples(scores, x64):
    turn, _ = np.linalg.qr(GENERATOR.normal(size=(3, 3)))
    z = jnp.asarray(GENERATOR.normal(size=(20, 3)))
    scores = jax.jit(scores)
    moved = scores(2.0 * z @ turn.T + 5.0)
    np.testing.assert_allclose(moved, scores(z) @ turn.T / 2.0, rtol=1e-7, atol=1e-7)


def test_spectral_scores_of_a_gaussian_come_nearer_with_more_samples():
    # Error relative to the size of the score: 1 for a score of 0. On average over six draws it was
    # .52, .30 and .18 at other points than 100, 400 and 1600 samples on a line.
    spectral = jax.jit(spectral_scores)
    for num, bound in ((100, 1.0), (400, 0.5)):
        z, at = jnp.asarray(np.random.default_rng(1).normal(size=(2, num, 1)), jnp.float32)
        assert math.sqrt(jnp.mean((spectral(z, at) + at) ** 2)) < bound


@pytest.mark.parametrize("scores, bound", [(stein_scores, 0.05), (spectral_scores, 0.15)])
def test_scores_from_samples_give_the_entropy_gradient_of_a_gaussian(scores, bound):
    # -E[S noise^T] against A^-T at 200 samples, relative in the Frobenius norm. On average over six
    # draws of 100 and 400 samples it was .01 and .003 (Stein), and .05 and .02 (spectral, which
    # leaves out 1 % of the spectrum).
    a = A[:2, :2]
    noise = whitened(200)[:, :2]
    found = -np.asarray(jax.jit(scores)(jnp.asarray(noise @ a.T, jnp.float32))).T @ noise / 200
    truth = np.linalg.inv(a).T
    assert np.linalg.norm(found - truth) < bound * np.linalg.norm(truth)


@pytest.mark.parametrize("scores", [stein_scores, spectral_scores])
def test_samples_that_coincide_have_no_score_and_one_sample_is_refused(scores):
    found = jax.jit(scores)(jnp.ones((4, 2)))
    np.testing.assert_allclose(found, 0.0, atol=1e-3)
    with pytest.raises(ValueError, match="needs at least 2 of them; got 1"):
        scores(jnp.ones((1, 2)))


def whitened(num):
    """Noise (num, 3) whose mean square is the identity, to rounding."""
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(num, 3)))
    return orthogonal * math.sqrt(num)
