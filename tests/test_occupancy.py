# SPDX-License-Identifier: Apache-2.0
"""Occupancies of finite decision processes against sums, autodiff and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax.objectives.occupancy_entropy import LogMeans, reward_of_means
from scorejax.rl import occupancy as occ

GAMMA, S, A = 0.9, 6, 3


@pytest.fixture(autouse=True)
def double(x64):
    """Identities hold to rounding, which single precision would hide."""


def process(seed, num=None):
    """Transitions, logits and a start law, of `num` processes if given; rows are Dirichlet(1)."""
    rng = np.random.default_rng(seed)
    lead = () if num is None else (num,)
    transitions = rng.dirichlet(np.ones(S), size=(*lead, S, A))
    arrays = transitions, rng.normal(size=(*lead, S, A)), rng.dirichlet(np.ones(S), size=lead)
    return tuple(map(jnp.asarray, arrays))


def law_of(logits):
    return jax.nn.softmax(logits, axis=-1)


@jax.jit
@jax.vmap
def everything(transitions, logits, start):
    policy = law_of(logits)
    options = {"gamma": GAMMA}
    args = transitions, policy, start
    return {
        "entropy": occ.entropy(occ.occupancy(*args, **options)),
        "states": occ.entropy(occ.state_occupancy(*args, **options)),
        "actions": occ.policy_entropy(*args, **options),
        "per_time": occ.per_time_bound(*args, **options),
        "mixture": occ.mixture_bound(*args, **options),
        "gap": occ.mixture_gap(*args, **options),
    }


def test_the_occupancy_is_the_discounted_sum():
    transitions, logits, start = process(0)
    policy = law_of(logits)
    moves, law, total = np.einsum("sa,sat->st", policy, transitions), np.asarray(start), 0
    for t in range(500):  # 0.9^500 = 1e-23
        total, law = total + (1 - GAMMA) * GAMMA**t * law, law @ moves
    states = occ.state_occupancy(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(states, total, atol=1e-14)
    rho = occ.occupancy(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(rho, total[:, None] * policy, atol=1e-14)
    joint = occ.consecutive_states(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(joint.sum(axis=1), total, atol=1e-14)
    np.testing.assert_allclose((1 - GAMMA) * start + GAMMA * joint.sum(axis=0), total, atol=1e-14)


def test_the_gradient_of_the_divergence_is_a_policy_gradient():
    transitions, logits, start = process(1)
    expert = occ.occupancy(transitions, law_of(process(2)[1]), start, gamma=GAMMA)

    def divergence(logits):
        rho = occ.occupancy(transitions, law_of(logits), start, gamma=GAMMA)
        return occ.kl_divergence(rho, expert)

    policy = law_of(logits)
    rho = occ.occupancy(transitions, policy, start, gamma=GAMMA)
    reward = jnp.log(rho) - jnp.log(expert)
    ours = occ.policy_gradient(transitions, policy, start, reward, gamma=GAMMA)
    # Rounding of two linear systems of condition 20.
    np.testing.assert_allclose(ours, jax.jit(jax.grad(divergence))(logits), atol=1e-13)
    assert np.abs(ours).max() > 1e-2


def test_bounds_are_in_order_and_the_gap_is_its_formula():
    transitions, logits, start = process(3, num=200)
    out = everything(transitions, logits, start)
    np.testing.assert_allclose(out["entropy"], out["states"] + out["actions"], atol=1e-13)
    np.testing.assert_allclose(out["entropy"] - out["mixture"], out["gap"], atol=1e-13)
    assert np.all(out["gap"] > 0)
    assert np.all(out["per_time"] <= out["mixture"])
    assert np.all(out["per_time"] > 0)


def test_two_states_have_a_closed_form():
    # The action is the next state; the policy stays with probability 1 - q; p_0 is uniform.
    q = 0.3
    transitions = jnp.broadcast_to(jnp.eye(2)[None], (2, 2, 2))
    policy = jnp.array([[1 - q, q], [q, 1 - q]])
    start = jnp.ones(2) / 2
    h = -q * np.log(q) - (1 - q) * np.log(1 - q)
    rho = occ.occupancy(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(occ.entropy(rho), np.log(2) + h, rtol=1e-14)
    np.testing.assert_allclose(occ.entropy(rho), 1.3040115, atol=5e-8)
    bound = occ.mixture_bound(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(bound, np.log(2) + (1 - GAMMA) * h, rtol=1e-14)
    np.testing.assert_allclose(bound, 0.7542336, atol=5e-8)
    # In the stationary law both bounds are one.
    per_time = occ.per_time_bound(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(per_time, bound, rtol=1e-12)


def test_every_critic_gives_a_bound_and_the_best_one_gives_the_information():
    transitions, logits, start = process(4)
    joint = occ.consecutive_states(transitions, law_of(logits), start, gamma=GAMMA)
    information = occ.mutual_information(joint)
    product = joint.sum(axis=1)[:, None] * joint.sum(axis=0)[None]
    np.testing.assert_allclose(information, np.sum(joint * np.log(joint / product)), rtol=1e-12)
    f = jnp.asarray(np.random.default_rng(5).normal(size=(1000, S, S)))
    nwj, centred = (
        jax.vmap(bound, (0, None))(f, joint)
        for bound in (occ.nwj_bound, occ.donsker_varadhan_bound)
    )
    assert np.all(nwj <= centred) and np.all(centred <= information)
    best = occ.optimal_critic(joint)
    for bound in (occ.nwj_bound, occ.donsker_varadhan_bound):
        np.testing.assert_allclose(bound(best, joint), information, atol=1e-14)
    np.testing.assert_allclose(occ.donsker_varadhan_bound(best + 3, joint), information, atol=1e-14)


def reward_of_actions(transitions, policy, f, joint, *, centre=False, both=True):
    """r_pi + r_f of each state and action, from the exact margins."""
    states, following = joint.sum(axis=1), joint.sum(axis=0)
    pairs = states[:, None] * following[None]
    first = jnp.log(jnp.exp(f) @ following)[:, None]  # E_t' e^f(t', s)
    second = jnp.log(states @ jnp.exp(f))[None] if both else -jnp.inf  # E_t e^f(s', t)
    means = LogMeans(
        jnp.broadcast_to(first, f.shape).reshape(-1),
        jnp.broadcast_to(second, f.shape).reshape(-1),
        jnp.log(jnp.sum(pairs * jnp.exp(f))),
    )
    rows = reward_of_means(f.reshape(-1), means, gamma=GAMMA, centre=centre)
    by_action = jnp.einsum("sat,st->sa", transitions, rows.reshape(f.shape))
    return by_action - jnp.log(policy)


@pytest.mark.parametrize("centre", [False, True])
def test_the_reward_has_the_gradient_of_the_bound(centre):
    transitions, logits, start = process(6)
    f = jnp.asarray(np.random.default_rng(7).normal(size=(S, S)))
    information = occ.donsker_varadhan_bound if centre else occ.nwj_bound

    def bound(logits):
        policy = law_of(logits)
        joint = occ.consecutive_states(transitions, policy, start, gamma=GAMMA)
        actions = occ.policy_entropy(transitions, policy, start, gamma=GAMMA)
        return GAMMA * information(f, joint) + actions

    policy = law_of(logits)
    joint = occ.consecutive_states(transitions, policy, start, gamma=GAMMA)
    value, expected = jax.jit(jax.value_and_grad(bound))(logits)
    reward = reward_of_actions(transitions, policy, f, joint, centre=centre)
    ours = occ.policy_gradient(transitions, policy, start, reward, gamma=GAMMA)
    np.testing.assert_allclose(ours, expected, atol=1e-13)
    # With one of the two exponentials it is another one, though the return is then the bound.
    one_less = reward_of_actions(transitions, policy, f, joint, centre=centre, both=False)
    wrong = occ.policy_gradient(transitions, policy, start, one_less, gamma=GAMMA)
    assert np.abs(wrong - expected).max() > 1e-3
    rho = occ.occupancy(transitions, policy, start, gamma=GAMMA)
    np.testing.assert_allclose(jnp.sum(rho * one_less), value, rtol=1e-13)
    assert abs(jnp.sum(rho * reward) - value) > 0.1


def test_action_values_are_the_discounted_sums():
    transitions, logits, _ = process(8)
    policy = law_of(logits)
    reward = jnp.asarray(np.random.default_rng(9).normal(size=(S, A)))
    numbers = [np.asarray(array) for array in (transitions, policy, reward)]
    values = numbers[2]
    for _ in range(400):  # 0.9^400 = 5e-19
        values = numbers[2] + GAMMA * numbers[0] @ np.sum(numbers[1] * values, axis=1)
    ours = occ.action_values(transitions, policy, reward, gamma=GAMMA)
    np.testing.assert_allclose(ours, values, atol=1e-12)


def test_a_discount_out_of_range_is_named():
    transitions, logits, start = process(0)
    with pytest.raises(ValueError, match=r"gamma needs to lie in \[0, 1\); got 1.0"):
        occ.state_occupancy(transitions, law_of(logits), start, gamma=1.0)
    with pytest.raises(ValueError, match=r"gamma needs to lie in \(0, 1\); got 0.0"):
        occ.per_time_bound(transitions, law_of(logits), start, gamma=0.0)
