# SPDX-License-Identifier: Apache-2.0
"""Annealed importance sampling against Gaussians in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.density import annealed_importance as annealed
from scorejax.density.annealing_path import geometric_path, level_path, sigmoid_betas
from scorejax.numerics import gaussian_log_prob
from scorejax.random import row_keys

RNG = jax.random.key(0)


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
    # each term of log w is rise (log(2 pi) - (l - 1) x^2) / 2, x ~ N(0, 1 / p_k), p_k the precision
    # where the step begins. Then E w is the normaliser sqrt(2 pi / l), whatever the betas, and on
    # the way back, where each rise is negative, one over it. Four standard errors, of a variance
    # sqrt(2 / n) of it and more as x^2 has a kurtosis of 15: two of those at most here, where 20
    # terms add up.
    precision, num = 3.0, 40_000
    betas = sigmoid_betas(21)
    log_prob = lambda x: -precision * x[:, 0] ** 2 / 2
    there = geometric_path(lambda x: gaussian_log_prob(x, 1.0), log_prob, betas)

    def weights(path, rng):
        at = 1 + jnp.asarray(path.positions()[1], jnp.float32) * (precision - 1)
        exact = lambda rng, k, x: jax.random.normal(rng, x.shape) / jnp.sqrt(at[k])
        draw = lambda rng, k, evaluate, point: (evaluate(exact(rng, k, point.x)), jnp.ones(num))
        start_rng, walk_rng = jax.random.split(rng)
        start = exact(start_rng, 0, jnp.zeros((num, 1)))
        return annealed.annealed_importance(walk_rng, path, start, transition=draw).log_weights

    both = jax.jit(lambda rng: (weights(there, rng), weights(there.reversed(), rng)))(RNG)
    for found, grid, sign in zip(both, (betas, betas[::-1]), (1, -1), strict=True):
        found = np.asarray(found, np.float64)
        rises, precisions = np.diff(grid), 1 + grid[:-1] * (precision - 1)
        mean = np.sum(rises) * math.log(2 * math.pi) / 2
        mean -= np.sum(rises * (precision - 1) / (2 * precisions))
        variance = np.sum((rises * (precision - 1)) ** 2 / (2 * precisions**2))
        assert abs(found.mean() - mean) < 4 * math.sqrt(variance / num)
        np.testing.assert_allclose(found.var(), variance, rtol=2 * 4 * math.sqrt(2 / num))
        weight = np.exp(found)
        error = weight.std() / math.sqrt(num)
        assert abs(weight.mean() - math.sqrt(2 * math.pi / precision) ** sign) < 4 * error


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
    path = geometric_path(base, log_prob, sigmoid_betas(100))
    run = jax.jit(lambda rng: annealed.hamiltonian_annealing(rng, path, draw))
    found = run(RNG)
    normaliser = annealed.importance_normalizer(found.log_weights)
    expected = dim / 2 * math.log(2 * math.pi) + np.sum(np.log(deviations))
    assert abs(normaliser.log_z - expected) < 0.02 * dim
    assert abs(normaliser.log_z - expected) < 4 * normaliser.standard_error
    assert 0.5 < found.acceptance.mean() < 0.8
    # The walks end at draws of p: whitened, of variance one.
    white = np.asarray(found.x) @ turn / deviations
    assert abs(np.mean(white**2) - 1) < 0.1


@pytest.mark.deep
def test_a_ladder_of_geometric_means_is_the_path_by_betas(x64):
    # Three levels (1 - b) base + b target at b = 0, .3, .45, 1, with betas of their own between.
    # Densities, starts and keys are the same, so the walks are, to rounding in double precision.
    levels = jnp.asarray([0.0, 0.3, 0.45, 1.0])
    inside = [np.linspace(0, 1, 5), np.array([0.0, 1.0]), np.linspace(0, 1, 4) ** 2]
    base = lambda x: gaussian_log_prob(x, 1.5)
    target = lambda x: jnp.sum(-((x - 0.5) ** 4) - x**2, axis=1)
    between = lambda level, x: (1 - levels[level]) * base(x) + levels[level] * target(x)
    ladder = level_path(between, 3, inside)
    low, high = np.asarray(levels)[:-1], np.asarray(levels)[1:]
    whole = np.concatenate(
        [[0.0], *(low[i] + (high[i] - low[i]) * inside[i][1:] for i in range(3))]
    )
    plain = geometric_path(base, target, whole)
    move = annealed.make_hamiltonian_transition(jnp.full(len(whole), 0.4), num_steps=2)
    x, keys = 1.5 * jax.random.normal(RNG, (20, 3)), row_keys(RNG, 20)
    for forward, backward in ((ladder, plain), (ladder.reversed(), plain.reversed())):
        found, expected = (
            annealed.annealed_importance(keys, path, x, transition=move)
            for path in (forward, backward)
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_ladder_of_scaled_variables_has_the_normaliser_of_its_last_level():
    # Gaussian data under diffusion recovery likelihood: the level t has the density of
    # y = a_{t+1} x_t, known up to a constant that differs between levels. In the variable x_t,
    # log q = f(a x_t, t) + D log a; with f(y, t) = -|y|^2 / (2 a^2 v_t) the last log Z is
    # (D / 2) log(2 pi v_0), whatever the constants in between.
    variances = jnp.asarray([0.3, 0.5, 0.8, 1.0])  # of x_0 .. x_2, and of white noise
    scales, constants = jnp.asarray([0.9, 0.7, 0.5, 1.0]), jnp.asarray([0.0, 40.0, -7.0, 0.0])
    dim, num = 6, 2000

    def log_prob_at(level, x):  # from noise, level 0, to data, level 3
        t = 3 - level
        y = scales[t] * x
        f = constants[t] - jnp.sum(y**2, axis=1) / (2 * scales[t] ** 2 * variances[t])
        white = gaussian_log_prob(x, 1.0)
        return jnp.where(level == 0, white, f + dim * jnp.log(scales[t]))

    path = level_path(log_prob_at, 3, np.linspace(0, 1, 9))
    draw = lambda rng: jax.random.normal(rng, (num, dim))
    run = jax.jit(lambda rng: annealed.hamiltonian_annealing(rng, path, draw, num_steps=3))
    found = annealed.importance_normalizer(run(RNG).log_weights)
    expected = dim / 2 * math.log(2 * math.pi * 0.3) + dim * math.log(0.9)
    assert found.standard_error < 0.03
    assert abs(found.log_z - expected) < 4 * found.standard_error


def test_log_weights_of_many_steps_are_as_exact_as_their_last_digit():
    # Walks that stay where they are: log w is the difference of the ends, -5000 or so, in 20000
    # steps. A plain sum in single precision is off by 0.01 nats; the compensated one by a unit of
    # the last digit, 4.9e-4, and by the rounding of the terms, each 2^-24 of itself: less than it.
    stay = lambda rng, k, evaluate, point: (point, jnp.ones(len(point.x)))
    x = jnp.linspace(1.0, 1.1, 16)[:, None]
    log_prob, base = lambda x: -5000 * x[:, 0] ** 2, lambda x: gaussian_log_prob(x, 1.0)
    path = geometric_path(base, log_prob, sigmoid_betas(20_001))
    run = jax.jit(lambda x: annealed.annealed_importance(RNG, path, x, transition=stay))
    found, expected = run(x).log_weights, log_prob(x) - base(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
    rises = (path.stops - path.starts).astype(np.float32)
    plain = np.cumsum(rises[:, None] * np.asarray(expected)[None], axis=0, dtype=np.float32)[-1]
    assert np.abs(plain - expected).max() > 5e-3


def test_a_walk_by_mala_makes_one_call_of_each_end_for_each_step_and_one_for_each_bridge():
    calls = []

    def log_prob_at(level, x):
        jax.debug.callback(lambda level: calls.append(int(level)), level)
        return gaussian_log_prob(x, 1.0)

    path = level_path(log_prob_at, 2, np.linspace(0, 1, 4))
    move = annealed.make_hamiltonian_transition(jnp.full(7, 0.4), num_steps=1)
    annealed.annealed_importance(RNG, path, jnp.ones((2, 1)), transition=move)
    jax.effects_barrier()
    # Two bridges of three steps: a call on entering and three on the way, of both ends.
    assert [calls.count(level) for level in range(3)] == [4, 8, 4]


@pytest.mark.parametrize("betas", [[0.0, 0.5], [0.1, 1.0], [0.0, 0.7, 0.5, 1.0]])
def test_betas_that_do_not_lead_from_the_base_to_the_density_are_refused(betas):
    log_prob = lambda x: gaussian_log_prob(x, 1.0)
    with pytest.raises(ValueError, match="betas need to rise from 0 to 1"):
        geometric_path(log_prob, log_prob, np.asarray(betas))


def test_ladders_that_are_none_are_refused():
    log_prob_at = lambda level, x: gaussian_log_prob(x, 1.0)
    with pytest.raises(ValueError, match="betas need num >= 2"):
        sigmoid_betas(1)
    with pytest.raises(ValueError, match="at least 2 densities; got 1"):
        level_path(log_prob_at, 0, np.linspace(0, 1, 3))
    with pytest.raises(ValueError, match="3 bridges need as many lists of betas; got 2"):
        level_path(log_prob_at, 3, [np.linspace(0, 1, 3)] * 2)
