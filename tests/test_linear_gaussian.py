# SPDX-License-Identifier: Apache-2.0
"""Linear-Gaussian systems: closed forms, simulation, and the optima of imitation and control."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from scorejax.objectives import occupancy_entropy as entropy
from scorejax.objectives.actor_critic import soft_value, td_target
from scorejax.rl import linear_gaussian as lg

SYSTEM_CONSTANTS = {"a": 0.95, "b": 0.5, "sigma": 0.3}
GAIN, STD = 0.8, 0.4


@pytest.fixture(autouse=True)
def double(x64):
    """Optima are compared to seven digits, closed forms to rounding."""


def scalar():
    return lg.scalar_system(**SYSTEM_CONSTANTS), lg.scalar_policy(GAIN, STD)


def planar():
    """A system of three states and two actions under a stable policy."""
    rng = np.random.default_rng(0)
    a, b = 0.4 * rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    root, spread = rng.normal(size=(3, 3)), rng.normal(size=(2, 2))
    system = lg.LinearSystem(*map(jnp.asarray, (a, b, root @ root.T / 9)))
    policy = lg.LinearPolicy(*map(jnp.asarray, (0.1 * rng.normal(size=(2, 3)), spread @ spread.T)))
    assert np.abs(np.linalg.eigvals(lg.closed_loop(system, policy)[0])).max() < 0.95
    return system, policy


def test_the_stationary_law_stays():
    system, policy = planar()
    move, noise = map(np.asarray, lg.closed_loop(system, policy))
    law = np.zeros((3, 3))
    for _ in range(800):  # 0.95^1600 = 2e-36
        law = move @ law @ move.T + noise
    np.testing.assert_allclose(lg.stationary_covariance(system, policy), law, rtol=1e-11)
    joint = lg.occupancy_covariance(system, policy)
    mapping = np.concatenate([np.eye(3), -np.asarray(policy.gain)])
    rebuilt = mapping @ law @ mapping.T
    rebuilt[3:, 3:] += np.asarray(policy.noise)
    np.testing.assert_allclose(joint, rebuilt, rtol=1e-11)
    det = np.linalg.det(law) * np.linalg.det(policy.noise)
    np.testing.assert_allclose(np.linalg.det(joint), det, rtol=1e-9)


def test_scalar_closed_forms():
    system, policy = scalar()
    c, noise = 0.55, 0.25 * STD**2 + 0.09
    s = noise / (1 - c**2)
    np.testing.assert_allclose(s, 0.1863799, atol=5e-8)
    np.testing.assert_allclose(lg.stationary_covariance(system, policy), [[s]], rtol=1e-13)
    covariance = [[s, -GAIN * s], [-GAIN * s, GAIN**2 * s + STD**2]]
    np.testing.assert_allclose(lg.occupancy_covariance(system, policy), covariance, rtol=1e-13)
    total = np.log(2 * np.pi * np.e) + np.log(s * STD**2) / 2
    np.testing.assert_allclose(lg.occupancy_entropy(system, policy), total, rtol=1e-13)
    information = lg.mutual_information(system, policy)
    np.testing.assert_allclose(information, -np.log(1 - c**2) / 2, rtol=1e-12)
    states = lg.gaussian_entropy(lg.stationary_covariance(system, policy))
    np.testing.assert_allclose(total, states + lg.policy_entropy(policy), rtol=1e-13)


def test_the_entropy_splits_in_several_dimensions():
    system, policy = planar()
    states = lg.gaussian_entropy(lg.stationary_covariance(system, policy))
    total = lg.occupancy_entropy(system, policy)
    np.testing.assert_allclose(total, states + lg.policy_entropy(policy), rtol=1e-12)
    covariance = lg.occupancy_covariance(system, policy)
    other = covariance + jnp.eye(5)
    # -KL is the mean log density of the other plus the own entropy.
    kl = lg.gaussian_kl(covariance, other)
    np.testing.assert_allclose(-kl, lg.mean_log_density(covariance, other) + total, rtol=1e-12)
    assert kl > 0.1
    np.testing.assert_allclose(lg.gaussian_kl(covariance, covariance), 0, atol=1e-12)


def quadratic_mean(matrix, covariance):
    return np.trace(matrix @ covariance)


@pytest.mark.parametrize("case", [scalar, planar])
def test_the_best_critic_has_the_information_as_its_bound(case):
    system, policy = case()
    move, noise = lg.closed_loop(system, policy)
    covariance = lg.stationary_covariance(system, policy)
    f = functools.partial(
        entropy.linear_gaussian_critic, transition=move, noise=noise, covariance=covariance
    )
    # E f over the joint law: the quadratic forms have means of d each.
    information = lg.mutual_information(system, policy)
    rng, n = np.random.default_rng(1), 40_000
    state = rng.multivariate_normal(np.zeros(len(move)), covariance, size=n)
    following = state @ move.T + rng.multivariate_normal(np.zeros(len(move)), noise, size=n)
    values = np.asarray(f(jnp.asarray(following), jnp.asarray(state)))
    error = values.std() / np.sqrt(n)
    assert abs(values.mean() - 1 - information) < 4 * error
    # E e^f = e over the product of margins. In the scalar case e^f has a finite variance.
    if case is scalar:
        other = np.exp(np.asarray(f(jnp.asarray(rng.permutation(following)), jnp.asarray(state))))
        assert abs(other.mean() / np.e - 1) < 4 * other.std() / np.e / np.sqrt(n)


def test_the_scalar_critic_is_its_closed_form():
    system, policy = scalar()
    move, noise = lg.closed_loop(system, policy)
    s, c = 0.1863799283154122, 0.55
    x, y = np.random.default_rng(2).normal(size=(2, 10))
    critic = entropy.linear_gaussian_critic(
        jnp.asarray(y[:, None]),
        jnp.asarray(x[:, None]),
        transition=move,
        noise=noise,
        covariance=lg.stationary_covariance(system, policy),
    )
    expected = 1 - np.log(1 - c**2) / 2 - (y - c * x) ** 2 / (2 * s * (1 - c**2)) + y**2 / (2 * s)
    np.testing.assert_allclose(critic, expected, rtol=1e-8)  # S is written to ten digits


def imitator(state_term):
    """(gain, std) that maximises the mean log-density of the expert plus entropy terms."""
    system, expert = scalar()
    target = lg.occupancy_covariance(system, expert)

    def loss(x):
        policy = lg.scalar_policy(x[0], jnp.exp(x[1]))
        covariance = lg.occupancy_covariance(system, policy)
        gain = lg.mean_log_density(covariance, target) + lg.policy_entropy(policy)
        return -gain - state_term(system, policy)

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    numpy_loss = lambda x: tuple(np.asarray(part, float) for part in value_and_grad(x))
    found = optimize.minimize(numpy_loss, np.array([1.0, -1.0]), jac=True, tol=1e-13)
    policy = lg.scalar_policy(found.x[0], np.exp(found.x[1]))
    kl = lg.gaussian_kl(lg.occupancy_covariance(system, policy), target)
    s, s_expert = (lg.stationary_covariance(system, p)[0, 0] for p in (policy, expert))
    return found.x[0], np.exp(found.x[1]), float(kl), float(s / s_expert)


@pytest.mark.parametrize(
    ("state_term", "expected"),
    [
        (lambda s, p: lg.gaussian_entropy(lg.stationary_covariance(s, p)), (0.8, 0.4, 0, 1)),
        (lambda s, p: 0.0, (1.0412727, 0.3534201, 0.0530696, 0.7974)),
        (lg.mutual_information, (0.7787913, 0.3490634, 0.0180828, 0.9425)),
    ],
    ids=["entropy", "nothing", "information"],
)
def test_the_state_term_decides_how_near_the_imitator_comes(state_term, expected):
    # The expected numbers are rounded to seven and four digits; the optimiser stops at a gradient
    # of 1e-9 or so where it can.
    tolerances = (2e-7, 2e-7, 1e-7, 6e-5)
    for ours, value, tolerance in zip(imitator(state_term), expected, tolerances, strict=True):
        assert abs(ours - value) < tolerance


SOFT = {"gamma": 0.95, "alpha": 0.7}


def test_soft_control_has_the_known_numbers():
    system, _ = scalar()
    soft = lg.soft_lqr(system, np.array([[1.3, 0.2], [0.2, 0.5]]), **SOFT)
    found = soft.p[0, 0], soft.policy.gain[0, 0], soft.policy.noise[0, 0], soft.offset
    np.testing.assert_allclose(found, (1.7269744, 1.0759658, 0.3845493, 3.2222301), atol=5e-8)


def planar_soft():
    system = lg.LinearSystem(*map(np.asarray, planar()[0]))
    root = np.random.default_rng(3).normal(size=(5, 5))
    return system, root @ root.T + np.eye(5)


def scalar_soft():
    return lg.LinearSystem(*map(np.asarray, scalar()[0])), np.array([[1.3, 0.2], [0.2, 0.5]])


class Gaussian:
    """The policy N(-K s, E) of each state, as soft actor-critic sees it."""

    def __init__(self, policy, obs):
        self.mean, self.noise = -obs @ policy.gain.T, policy.noise

    def sample_and_log_prob(self, noise):
        off = noise @ np.linalg.cholesky(self.noise).T
        square = np.sum(off * np.linalg.solve(self.noise, off.T).T, axis=1)
        log_det = np.linalg.slogdet(2 * np.pi * self.noise)[1]
        return self.mean + off, jnp.asarray(-(square + log_det) / 2)


def action_value(soft, state, action):
    x = np.concatenate([state, action], axis=1)
    return -np.sum(x @ soft.h * x, axis=1) + soft.action_offset


@pytest.mark.parametrize("case", [scalar_soft, planar_soft])
def test_soft_control_solves_bellmans_equation(case):
    system, cost = case()
    soft = lg.soft_lqr(system, cost, **SOFT)
    rng, (dim, num_actions) = np.random.default_rng(4), system.b.shape
    state, action = rng.normal(size=(5, dim)), rng.normal(size=(5, num_actions))
    x = np.concatenate([state, action], axis=1)
    reward = jnp.asarray(-np.sum(x @ cost * x, axis=1))
    # V is quadratic: its mean over the noise is the mean over 2 d points of the same covariance.
    root = np.sqrt(dim) * np.linalg.cholesky(system.noise).T
    points = np.concatenate([root, -root])
    targets = []
    for point in points:
        following = state @ system.a.T + action @ system.b.T + point
        policy = Gaussian(soft.policy, following)
        next_action, log_prob = policy.sample_and_log_prob(rng.normal(size=action.shape))
        # At the optimum Q - alpha log pi is V whatever the action.
        values = action_value(soft, following, next_action)
        value = soft_value(jnp.stack([values, values], axis=1), log_prob, SOFT["alpha"])
        closed = -np.sum(following @ soft.p * following, axis=1) + soft.offset
        np.testing.assert_allclose(value, closed, rtol=1e-10)
        targets.append(td_target(reward, jnp.zeros(5), value, gamma=SOFT["gamma"]))
    expected = action_value(soft, state, action)
    np.testing.assert_allclose(np.mean(targets, axis=0), expected, rtol=1e-10)


@pytest.mark.parametrize("case", [scalar_soft, planar_soft])
def test_policy_improvement_does_not_move_the_optimum(case):
    system, cost = case()
    soft = lg.soft_lqr(system, cost, **SOFT)
    dim = len(system.a)
    value = lambda u: action_value(soft, np.arange(1.0, dim + 1)[None], u[None])[0]
    # exp(Q / alpha), normalised over actions, is Gaussian: Q is quadratic, differences are exact.
    units = np.eye(system.b.shape[1])
    slope = np.array([(value(e) - value(-e)) / 2 for e in units])
    mixed = [[value(e + g) - value(e) - value(g) + value(0 * e) for e in units] for g in units]
    # Values are of order 10 to 100, of which differences keep 13 digits.
    np.testing.assert_allclose(
        soft.policy.noise, -SOFT["alpha"] * np.linalg.inv(mixed), rtol=1e-10, atol=1e-12
    )
    centre = -np.linalg.solve(mixed, slope)
    np.testing.assert_allclose(
        -soft.policy.gain @ np.arange(1.0, dim + 1), centre, rtol=1e-10, atol=1e-12
    )


def test_settings_out_of_range_are_named():
    system, cost = scalar_soft()
    with pytest.raises(ValueError, match=r"gamma needs to lie in \(0, 1\); got 1.0"):
        lg.soft_lqr(system, cost, gamma=1.0, alpha=0.1)
    with pytest.raises(ValueError, match=r"alpha needs to be positive and finite; got 0\.0"):
        lg.soft_lqr(system, cost, gamma=0.9, alpha=0.0)
