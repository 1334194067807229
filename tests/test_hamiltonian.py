# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo and MALA against exact trajectories, laws and acceptance."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.random import row_keys
from scorejax.samplers.hamiltonian import (
    adapted,
    hamiltonian_move,
    hamiltonian_transition,
    langevin_transition,
    leapfrog,
    make_evaluate,
    propose,
)

RNG = jax.random.key(0)
FREQUENCY = 1.3  # of an oscillator: log p = -(FREQUENCY x)^2 / 2


def oscillator(x):
    return -((FREQUENCY * x[:, 0]) ** 2) / 2


def quartic(x):
    return jnp.sum(-(x**4) / 4 - x**2 / 2, axis=1)


@jax.jit
def trajectories(x, momentum, sizes):
    """Where 1.6 / size steps of each size lead; the numbers of steps are 2^k times eight."""
    evaluate = make_evaluate(oscillator)
    runs = [
        leapfrog(evaluate, evaluate(x), momentum, step_size=sizes[i], num_steps=8 * 2**i)
        for i in range(len(sizes))
    ]
    return jnp.stack([jnp.stack([end.x, turned]) for end, turned in runs])


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
    evaluate = make_evaluate(quartic)
    there = leapfrog(evaluate, evaluate(x), momentum, step_size=0.2, num_steps=7)
    back = leapfrog(evaluate, there[0], -there[1], step_size=0.2, num_steps=7)
    np.testing.assert_allclose(back[0].x, x, atol=1e-12)  # Double precision.
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


def test_mala_accepts_by_the_ratio_of_densities_of_its_proposals(x64):
    # min(1, p(y) q(x | y) / (p(x) q(y | x))), q(y | x) = N(x + s^2 / 2 score(x), s^2 I), by NumPy.
    size = 0.9
    x = np.random.default_rng(0).normal(size=(50, 3))
    evaluate = make_evaluate(quartic)
    end, found = propose(RNG, evaluate, evaluate(jnp.asarray(x)), step_size=size, num_steps=1)
    y = np.asarray(end.x)
    log_p = lambda x: np.sum(-(x**4) / 4 - x**2 / 2, axis=1)
    log_q = lambda to, at: -np.sum((to - at - size**2 / 2 * (-(at**3) - at)) ** 2, 1) / 2 / size**2
    expected = np.exp(np.minimum(log_p(y) + log_q(x, y) - log_p(x) - log_q(y, x), 0))
    assert expected.min() < 0.1 and expected.max() == 1
    np.testing.assert_allclose(found, expected, rtol=1e-10)  # Double precision.
    np.testing.assert_allclose(end.score, -(y**3) - y, rtol=1e-12)
    np.testing.assert_allclose(end.log_prob, log_p(y), rtol=1e-12)
    moved = langevin_transition(RNG, quartic, jnp.asarray(x), step_size=size)
    noise = jax.random.normal(jax.random.split(RNG)[0], x.shape)
    proposal = x + size**2 / 2 * (-(x**3) - x) + size * np.asarray(noise)
    stays = np.all(np.asarray(moved.x) == x, axis=1)
    assert 0 < stays.sum() < 50
    np.testing.assert_allclose(np.asarray(moved.x)[~stays], proposal[~stays], rtol=1e-12)


def test_a_step_size_for_each_chain_moves_each_as_it_would_move_alone():
    x = jax.random.normal(jax.random.key(1), (4, 3))
    sizes, keys = jnp.asarray([0.1, 0.3, 0.5, 0.9]), row_keys(RNG, 4)
    move = jax.jit(lambda keys, x, size: langevin_transition(keys, quartic, x, step_size=size))
    together = move(keys, x, sizes)
    # Rounding in single precision: one row is not rounded as four are.
    for i in range(4):
        alone = move(keys[i : i + 1], x[i : i + 1], sizes[i])
        np.testing.assert_allclose(together.x[i], alone.x[0], rtol=1e-5)
        np.testing.assert_allclose(together.acceptance[i], alone.acceptance[0], rtol=1e-5)


def test_a_chain_of_points_makes_one_gradient_call_for_each_leapfrog_step():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return quartic(x)

    evaluate = make_evaluate(counted)
    point = evaluate(jnp.ones((3, 2)))
    for num_steps in (1, 4):
        point, _ = hamiltonian_move(RNG, evaluate, point, step_size=0.1, num_steps=num_steps)
    jax.effects_barrier()
    assert len(calls) == 1 + 1 + 4
    langevin_transition(RNG, counted, point.x, step_size=0.1)
    jax.effects_barrier()
    assert len(calls) == 6 + 2


def test_step_sizes_settle_where_the_acceptance_is_as_wanted():
    # Of proposals from N(0, 1) to itself by MALA the acceptance falls with the step size.
    log_prob = lambda x: -jnp.sum(x**2, axis=1) / 2
    x = jax.random.normal(RNG, (2000, 5))
    evaluate = make_evaluate(log_prob)

    def step(size, key):
        _, acceptance = propose(key, evaluate, evaluate(x), step_size=size, num_steps=1)
        return adapted(size, acceptance, target=0.6), jnp.mean(acceptance)

    _, acceptance = jax.lax.scan(step, jnp.float32(0.01), jax.random.split(RNG, 60))
    # The gain of one is close to Newton's. Mean of 20 batches, 0.3 / sqrt(2000) each: 0.0015.
    assert abs(acceptance[-20:].mean() - 0.6) < 0.006
