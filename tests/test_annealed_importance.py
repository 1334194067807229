# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo and annealed importance sampling against Gaussians in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density import annealed_importance as annealed
from scorejax.numerics import gaussian_log_prob
from scorejax.samplers.hamiltonian import Moved, hamiltonian_transition, leapfrog

RNG = jax.random.key(0)
FREQUENCY = 1.3  # of an oscillator: log p = -(FREQUENCY x)^2 / 2


def oscillator(x):
    return -(FREQUENCY**2) * x


@jax.jit
def trajectories(x, momentum, sizes):
    """Where 1.6 / size steps of each size lead; the numbers of steps are 2^k times eight."""
    runs = [
        leapfrog(oscillator, x, momentum, step_size=sizes[i], num_steps=8 * 2**i)
        for i in range(len(sizes))
    ]
    return jnp.stack([jnp.stack(run) for run in runs])


def test_the_leapfrog_follows_the_exact_trajectory_to_second_order(x64):
    x, momentum = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 1)))
    sizes = 0.2 / 2.0 ** np.arange(3)
    found = np.asarray(trajectories(x, momentum, sizes))
    x, momentum = np.asarray(x), np.asarray(momentum)
    angle = FREQUENCY * 1.6
    exact_x = x * math.cos(angle) + momentum / FREQUENCY * math.sin(angle)
    exact_p = momentum * math.cos(angle) - x * FREQUENCY * math.sin(angle)
    energy = lambda x, p: (FREQUENCY * x) ** 2 / 2 + p**2 / 2
    off = {
        "trajectory": np.abs(found - np.stack([exact_x, exact_p])).max(axis=(1, 2, 3)),
        "energy": np.abs(energy(*found.swapaxes(0, 1)) - energy(x, momentum)).max(axis=(1, 2)),
    }
    for errors in off.values():  # The next order is size^2 / 10 of the error: 0.4 % of the slope.
        np.testing.assert_allclose(np.diff(np.log2(errors)), -2, atol=0.05)


def test_the_leapfrog_is_undone_by_turning_the_momentum_round(x64):
    x, momentum = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
    score = lambda x: -(x**3) - x  # of log p = -x^4 / 4 - x^2 / 2
    there = leapfrog(score, x, momentum, step_size=0.2, num_steps=7)
    back = leapfrog(score, there[0], -there[1], step_size=0.2, num_steps=7)
    np.testing.assert_allclose(back[0], x, atol=1e-12)  # Double precision.
    np.testing.assert_allclose(back[1], -momentum, atol=1e-12)


def test_transitions_leave_the_density_as_it_is_at_steps_that_are_far_too_long():
    # Without Metropolis' decision the variance of such steps would become 1 / (1 - 1.3^2 / 4) = 1.7
    # times too large. Of n draws it has a standard error of sqrt(2 / n), the mean of 1 / sqrt(n):
    # four of each. And as a step becomes short every trajectory is accepted.
    num, transitions = 20_000, 5
    log_prob = lambda x: -(x[:, 0] ** 2) / 2

    @jax.jit
    def chain(x, size):
        def step(x, key):
            moved = hamiltonian_transition(key, log_prob, x, step_size=size, num_steps=4)
            return moved.x, moved.acceptance.mean()

        return jax.lax.scan(step, x, jax.random.split(RNG, transitions))

    start = np.random.default_rng(1).normal(size=(num, 1)).astype(np.float32)
    x, acceptance = chain(start, 1.3)
    assert acceptance.min() > 0.4 and acceptance.max() < 0.95
    assert abs(x.mean()) < 4 / math.sqrt(num)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / num)
    assert np.mean(np.asarray(x) == start) < 0.1  # and the chains have moved
    short = [1 - chain(start, size)[1].mean() for size in (0.4, 0.2, 0.1)]
    assert short[0] > short[1] > short[2] and short[2] < 0.01


def test_a_trajectory_into_nothing_is_not_accepted():
    log_prob = lambda x: jnp.where(x[:, 0] > 0, jnp.nan, 0.0)
    x = jnp.full((50, 1), -0.1)
    moved = hamiltonian_transition(RNG, log_prob, x, step_size=1.0, num_steps=1)
    assert (moved.x <= 0).all() and (moved.x != x).any()


def test_the_normaliser_of_a_gaussian_is_found_with_its_error():
    # p~ = exp(-x^2 / 2) in two dimensions, log Z = log(2 pi), from N(0, 1.5^2).
    draws = 1.5 * np.random.default_rng(3).normal(size=(200, 2000, 2))
    log_q = -np.sum(draws**2, -1) / (2 * 1.5**2) - math.log(2 * math.pi * 1.5**2)
    found = jax.vmap(annealed.importance_normalizer)(-np.sum(draws**2, -1) / 2 - log_q)
    off = (np.asarray(found.log_z) - math.log(2 * math.pi)) / found.standard_error
    # 200 standardised errors: their mean square is 1 within four times its error of sqrt(2 / 200).
    assert abs(np.mean(off**2) - 1) < 0.4
    # E w^2 / (E w)^2 = s^4 / (2 s^2 - 1) in two dimensions.
    share = (2 * 1.5**2 - 1) / 1.5**4
    np.testing.assert_allclose(np.mean(found.effective_size), 2000 * share, rtol=0.02)


def test_weights_of_exact_draws_have_the_known_law():
    # From N(0, 1) to the precision l, p~ = exp(-l x^2 / 2), with independent draws at every beta:
    # each term of log w is rise (log(2 pi) - (l - 1) x^2) / 2, x ~ N(0, 1 / p_k). Then E w is the
    # normaliser sqrt(2 pi / l), whatever the betas. Four standard errors, of a variance sqrt(2 / n)
    # of it and more as x^2 has a kurtosis of 15: two of those at most here, where 20 terms add up.
    precision, num = 3.0, 40_000
    betas = annealed.sigmoid_betas(21)
    at = lambda k: 1 + jnp.asarray(betas)[k] * (precision - 1)

    def exact(rng, k, x):
        return Moved(jax.random.normal(rng, x.shape) / jnp.sqrt(at(k)), jnp.ones(len(x)))

    log_prob = lambda x: -precision * x[:, 0] ** 2 / 2
    base = lambda x: gaussian_log_prob(x, 1.0)
    start = jax.random.normal(jax.random.key(1), (num, 1))
    run = jax.jit(
        lambda x: (
            annealed.annealed_importance(
                RNG, log_prob, base, x, betas=betas, transition=exact
            ).log_weights
        )
    )
    found = np.asarray(run(start), np.float64)
    rises, precisions = np.diff(betas), 1 + betas[:-1] * (precision - 1)
    mean = math.log(2 * math.pi) / 2 - np.sum(rises * (precision - 1) / (2 * precisions))
    variance = np.sum((rises * (precision - 1)) ** 2 / (2 * precisions**2))
    assert abs(found.mean() - mean) < 4 * math.sqrt(variance / num)
    np.testing.assert_allclose(found.var(), variance, rtol=2 * 4 * math.sqrt(2 / num))
    weights = np.exp(found)
    error = weights.std() / math.sqrt(num)
    assert abs(weights.mean() - math.sqrt(2 * math.pi / precision)) < 4 * error


def test_the_normaliser_of_a_quadratic_energy_is_found_by_hamiltonian_monte_carlo():
    # log Z = (D / 2) log(2 pi) - log det P / 2, deviations from 0.4 to 2.5 in eight dimensions.
    # Plain importance sampling from N(0, I) has no second moment there: some deviations are above
    # sqrt(2). To 0.02 nats a dimension, and within four of the standard errors that it states.
    dim, num = 8, 1000
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))
    deviations = np.geomspace(0.4, 2.5, dim)
    precision = jnp.asarray(turn @ np.diag(deviations**-2) @ turn.T, jnp.float32)
    log_prob = lambda x: -jnp.sum((x @ precision) * x, axis=1) / 2
    base = lambda x: gaussian_log_prob(x, 1.0)
    draw = lambda rng: jax.random.normal(rng, (num, dim))
    betas = annealed.sigmoid_betas(100)
    run = jax.jit(
        lambda rng: annealed.hamiltonian_annealing(rng, log_prob, base, draw, betas=betas)
    )
    found = run(RNG)
    normaliser = annealed.importance_normalizer(found.log_weights)
    expected = dim / 2 * math.log(2 * math.pi) + np.sum(np.log(deviations))
    assert abs(normaliser.log_z - expected) < 0.02 * dim
    assert abs(normaliser.log_z - expected) < 4 * normaliser.standard_error
    assert 0.5 < found.acceptance.mean() < 0.8
    # The walks end at draws of p: whitened, of variance one.
    white = np.asarray(found.x) @ turn / deviations
    assert abs(np.mean(white**2) - 1) < 0.1


@pytest.mark.parametrize("betas", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.7, 0.5, 1.0]])
def test_betas_that_do_not_lead_from_the_base_to_the_density_are_refused(betas):
    log_prob = lambda x: gaussian_log_prob(x, 1.0)
    transition = lambda rng, k, x: Moved(x, jnp.ones(len(x)))
    with pytest.raises(ValueError, match="betas need to rise from 0 to 1"):
        annealed.annealed_importance(
            RNG, log_prob, log_prob, jnp.ones((2, 1)), betas=np.asarray(betas),
            transition=transition,
        )  # fmt: skip
    with pytest.raises(ValueError, match="betas need num >= 2"):
        annealed.sigmoid_betas(1)
