# SPDX-License-Identifier: Apache-2.0
"""Bounds and rewards estimated from transitions, against their exact values."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorejax.models.actor_critic import PairCritic
from scorejax.objectives import occupancy_entropy as entropy
from scorejax.rl import linear_gaussian as lg
from scorejax.rl import occupancy as occ
from tests.compilation import optimised_jit

RNG = np.random.default_rng(0)
STATE, NEXT = (jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32) for _ in range(2))
OTHER, OTHER_NEXT = (jnp.asarray(RNG.normal(size=(9, 2)), jnp.float32) for _ in range(2))
GAMMA = 0.9


def asymmetric(next_state, state):
    """A critic in which the roles of the two states cannot be taken for each other."""
    return jnp.sin(next_state[:, 0]) - 0.5 * state[:, 0] * next_state[:, 1]


def asymmetric_matrix(next_state, state):
    next_state, state = np.asarray(next_state, float), np.asarray(state, float)
    return np.sin(next_state[:, :1]) - 0.5 * state[:, 0] * next_state[:, 1:]


def test_pairs_are_next_states_by_states():
    pairs = entropy.pairwise(asymmetric, OTHER_NEXT, STATE)
    np.testing.assert_allclose(pairs, asymmetric_matrix(OTHER_NEXT, STATE), rtol=1e-5, atol=1e-6)


def expected_means(own):
    """log E e^f of each row over each margin, and over both, with a transition's own pair out."""
    off = lambda matrix: np.where(np.eye(len(matrix), dtype=bool), 0, np.exp(matrix))
    if own:
        weights = off(asymmetric_matrix(NEXT, STATE))
        n = len(STATE)
        means = weights.sum(axis=0) / (n - 1), weights.sum(axis=1) / (n - 1)
    else:
        means = (
            np.exp(asymmetric_matrix(OTHER_NEXT, STATE)).mean(axis=0),
            np.exp(asymmetric_matrix(NEXT, OTHER)).mean(axis=1),
        )
        weights, n = off(asymmetric_matrix(OTHER_NEXT, OTHER)), len(OTHER)
    return [np.log(mean) for mean in (*means, weights.sum() / (n * (n - 1)))]


@pytest.mark.parametrize("own", [True, False])
def test_bounds_and_rewards_are_their_sums(own):
    negatives = () if own else (OTHER_NEXT, OTHER)
    by_state, by_next, both = expected_means(own)
    f = np.diag(asymmetric_matrix(NEXT, STATE))

    @jax.jit
    def ours():
        reward = functools.partial(entropy.saelbo_reward, gamma=GAMMA)
        return (
            entropy.nwj_bound(asymmetric, NEXT, STATE, *negatives),
            entropy.donsker_varadhan_bound(asymmetric, NEXT, STATE, *negatives),
            reward(asymmetric, STATE, NEXT, *negatives),
            reward(asymmetric, STATE, NEXT, *negatives, centre=True),
            reward(lambda *x: asymmetric(*x) + 3, STATE, NEXT, *negatives, centre=True),
        )

    nwj, centred_bound, reward, centred, shifted = ours()
    # float32 sums
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    assert_close(nwj, f.mean() - np.exp(both - 1))
    assert_close(centred_bound, f.mean() - both)
    assert_close(reward, GAMMA * (f - np.exp(by_state - 1) - np.exp(by_next - 1)))
    expected = GAMMA * (f + 1 - both - np.exp(by_state - both) - np.exp(by_next - both))
    assert_close(centred, expected)
    assert_close(shifted, expected)  # a constant in f does not matter


@pytest.mark.deep
def test_a_transition_that_is_drawn_twice_is_no_negative_of_itself():
    twice = np.repeat(np.arange(len(STATE)), 2)
    for bound in (entropy.nwj_bound, entropy.donsker_varadhan_bound):
        once = bound(asymmetric, NEXT, STATE)
        again = bound(asymmetric, NEXT[twice], STATE[twice], which=jnp.asarray(twice))
        # float32 sums of the same pairs, four times each
        np.testing.assert_allclose(again, once, rtol=1e-5)


def test_the_reward_carries_no_gradient_and_the_bound_does():
    f = lambda scale: lambda *x: scale * asymmetric(*x)
    reward = lambda scale: jnp.sum(entropy.saelbo_reward(f(scale), STATE, NEXT, gamma=GAMMA))
    bound = lambda scale: entropy.nwj_bound(f(scale), NEXT, STATE)
    gradients = jax.jit(lambda: (jax.grad(reward)(1.0), jax.grad(bound)(1.0)))()
    assert gradients[0] == 0
    # By differences of the bound, of relative step 1e-2 and error 1e-4.
    by_state = entropy.nwj_bound(f(1.01), NEXT, STATE) - entropy.nwj_bound(f(0.99), NEXT, STATE)
    np.testing.assert_allclose(gradients[1], by_state / 0.02, rtol=1e-3, atol=1e-4)


def chain():
    """The joint law of two consecutive states of a sticky chain, and its best critic."""
    num = 4
    transitions = (0.2 / num + 0.8 * jnp.eye(num))[:, None]
    start = jnp.array([0.4, 0.3, 0.2, 0.1])
    joint = occ.consecutive_states(transitions, jnp.ones((num, 1)), start, gamma=GAMMA)
    joint = np.asarray(joint, float)
    return joint / joint.sum()


def test_batches_estimate_the_exact_bound_without_bias():
    joint, num_batches, size = chain(), 200, 8
    best = np.asarray(occ.optimal_critic(jnp.asarray(joint)), float)
    exact = float(occ.nwj_bound(jnp.asarray(best), jnp.asarray(joint)))
    rows = np.random.default_rng(1).choice(joint.size, (num_batches, size), p=joint.flat)
    states, following = (np.eye(len(joint))[i] for i in np.unravel_index(rows, joint.shape))
    f = lambda next_state, state: jnp.einsum("bs,st,bt->b", state, jnp.asarray(best), next_state)
    bound = jax.jit(jax.vmap(functools.partial(entropy.nwj_bound, f)))(following, states)
    error = np.std(bound) / math.sqrt(num_batches)
    assert abs(np.mean(bound) - exact) < 4 * error  # false alarms: 6e-5
    # With each row's own pair among the negatives the estimate is off by far more.
    pairs = jax.vmap(functools.partial(entropy.pairwise, f))(following, states)
    naive = np.mean(np.diagonal(pairs, axis1=1, axis2=2)) - np.mean(np.exp(pairs - 1), axis=(1, 2))
    assert np.mean(naive) < exact - 6 * error


def linear_gaussian_rows(num):
    """Consecutive states (num, 1) of a linear-Gaussian system at rest, and its closed forms."""
    system, policy = lg.scalar_system(0.95, 0.5, 0.3), lg.scalar_policy(0.8, 0.4)
    move, noise = lg.closed_loop(system, policy)
    covariance = lg.stationary_covariance(system, policy)
    rng = np.random.default_rng(2)
    state = math.sqrt(covariance[0, 0]) * rng.normal(size=(num, 1))
    following = state * float(move[0, 0]) + math.sqrt(noise[0, 0]) * rng.normal(size=(num, 1))
    f = functools.partial(
        entropy.linear_gaussian_critic, transition=move, noise=noise, covariance=covariance
    )
    rows = (jnp.asarray(x, jnp.float32) for x in (following, state))
    return *rows, f, system, policy


@pytest.mark.parametrize(
    "name", ["best", "displacement", "similarity", "best, centred", "displacement, centred"]
)
def test_no_critic_bounds_more_than_the_information(name):
    following, state, best, system, policy = linear_gaussian_rows(600)
    critics = {
        "best": best,
        "displacement": entropy.log_displacement,
        "similarity": functools.partial(entropy.gaussian_similarity, scale=0.6),
    }
    kind, _, centred = name.partition(", ")
    bound = entropy.donsker_varadhan_bound if centred else entropy.nwj_bound
    value = float(jax.jit(functools.partial(bound, critics[kind]))(following, state))
    information = float(lg.mutual_information(system, policy))
    # Standard error of the mean of f of the best critic: 0.5 / sqrt(600) = 0.02.
    if kind == "best":
        assert abs(value - information) < 0.08
    else:
        assert value < information
        plain = jax.jit(functools.partial(entropy.nwj_bound, critics[kind]))(following, state)
        assert plain <= value


def test_the_displacement_reward_is_its_formula():
    reward = entropy.saelbo_reward(
        entropy.log_displacement, STATE, NEXT, OTHER_NEXT, OTHER, gamma=0.5
    )
    square = lambda a, b: np.sum((np.asarray(a)[:, None] - np.asarray(b)[None]) ** 2, axis=2)
    own = np.diag(square(NEXT, STATE))
    away = square(STATE, OTHER_NEXT).mean(axis=1) + square(NEXT, OTHER).mean(axis=1)
    np.testing.assert_allclose(reward, 0.5 * (1 + np.log(own)) - 0.5 * away, rtol=1e-5)
    still = entropy.log_displacement(STATE, STATE, floor=1e-4)
    np.testing.assert_allclose(still, 1 + math.log(1e-4), rtol=1e-6)
    np.testing.assert_allclose(
        entropy.gaussian_similarity(NEXT, STATE, scale=2.0), 1 - own / 8, rtol=1e-5
    )


@pytest.mark.parametrize("dim", [1, 3])
def test_neighbours_estimate_the_entropy_of_a_gaussian(dim):
    num, std = 1000, 2.0
    rows = jnp.asarray(std * np.random.default_rng(4).normal(size=(num, dim)), jnp.float32)
    exact = dim * math.log(std * math.sqrt(2 * math.pi * math.e))
    reward = jax.jit(entropy.knn_entropy_reward)(rows)
    # The variance of -log p is d / 2 and of the log of a mass of 5 neighbours 0.22. The bias at
    # the edges, of order (k / n)^(2 / d), is 0.03 in three dimensions.
    error = math.sqrt((dim / 2 + 0.22) / num)
    assert abs(jnp.mean(reward) - exact) < 4 * error + 0.03 * (dim == 3)
    others = jax.jit(entropy.knn_entropy_reward)(rows[:500], rows[500:])
    assert abs(jnp.mean(others) - exact) < 4 * math.sqrt(2) * error + 0.05 * (dim == 3)


def test_states_met_twice_have_a_finite_reward():
    rows = jnp.zeros((4, 2))
    assert jnp.all(jnp.isfinite(entropy.knn_entropy_reward(rows, k=2)))


@pytest.mark.slow
def test_a_learned_critic_finds_the_information():
    following, state, _, system, policy = linear_gaussian_rows(20_000)
    network, tx = PairCritic((32, 32)), optax.adam(3e-3)
    params = network.init(jax.random.key(0), following[:1], state[:1])
    bound = lambda params, *rows: entropy.nwj_bound(functools.partial(network.apply, params), *rows)

    def step(carry, rows):
        params, opt_state = carry
        gradient = jax.grad(lambda params: -bound(params, following[rows], state[rows]))(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    rows = jax.random.randint(jax.random.key(1), (800, 64), 0, 16_000)
    train = optimised_jit(lambda carry: jax.lax.scan(step, carry, rows)[0][0])
    params = train((params, tx.init(params)))
    held_out = float(optimised_jit(bound)(params, following[-1000:], state[-1000:]))
    information = float(lg.mutual_information(system, policy))
    # Standard error 0.02, and what so short a training misses; no critic has 0.
    assert 0.7 * information < held_out < information + 0.06


def test_bad_negatives_are_named():
    call = functools.partial(entropy.saelbo_reward, asymmetric, STATE, NEXT)
    with pytest.raises(ValueError, match="need to be given together, or neither"):
        call(OTHER_NEXT, gamma=GAMMA)
    with pytest.raises(ValueError, match="as many of both; got 9 next states, 8 states"):
        call(OTHER_NEXT, OTHER[:8], gamma=GAMMA)
    with pytest.raises(ValueError, match="at least 2 transitions; got 1"):
        entropy.nwj_bound(asymmetric, NEXT[:1], STATE[:1])
    with pytest.raises(ValueError, match=r"gamma needs to lie in \[0, 1\); got 1"):
        call(gamma=1.0)
    with pytest.raises(ValueError, match=r"k needs to lie in 1 .. 5; got 6"):
        entropy.knn_entropy_reward(STATE, k=6)
