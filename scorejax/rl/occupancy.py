# SPDX-License-Identifier: Apache-2.0
"""Occupancies of finite decision processes, exactly: laws, entropies, bounds and gradients.

A process has transitions P[s, a, s'] and a start law p_0; a policy is pi[s, a]. The occupancy
rho[s, a] = (1 - gamma) sum_t gamma^t P(s_t = s, a_t = a) sums to one. The return of a reward is
normalised too, J(r) = E_rho r. Entropies, divergences and information are in nats. All functions
are differentiable; linear systems are solved, so that float64 gives a dozen digits.

Source: arXiv:2010.09808 for the objective; `mixture_bound` is ours.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float

from scorejax.choices import require

Transitions = Float[Array, "s a s"]
Policy = Float[Array, "s a"]
Law = Float[Array, "s"]
Joint = Float[Array, "s s"]


def state_transitions(transitions: Transitions, policy: Policy) -> Float[Array, "s s"]:
    """P_pi[s, s'] = sum_a pi(a|s) P(s'|s, a)."""
    return jnp.einsum("sa,sat->st", policy, transitions)


def state_occupancy(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, "s"]:
    """d(s) = (1 - gamma) sum_t gamma^t P(s_t = s), which solves d = (1 - gamma) p_0 + gamma d+.

    Raises: ValueError unless 0 <= gamma < 1.
    """
    _require_gamma(gamma)
    flow = jnp.eye(len(start)) - gamma * state_transitions(transitions, policy).T
    return (1 - gamma) * jnp.linalg.solve(flow, start)


def occupancy(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, "s a"]:
    """rho(s, a) = d(s) pi(a|s)."""
    return state_occupancy(transitions, policy, start, gamma=gamma)[:, None] * policy


def consecutive_states(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, "s s"]:
    """omega(s, s') = d(s) P_pi(s'|s): the joint law of a state and the next one.

    Its margins are d (over s') and d+ (over s), the occupancy of next states.
    """
    states = state_occupancy(transitions, policy, start, gamma=gamma)
    return states[:, None] * state_transitions(transitions, policy)


def entropy(law: Float[Array, "*n"]) -> Float[Array, ""]:
    """Shannon's entropy -sum p log p over all entries."""
    return jnp.sum(entr(law))


def kl_divergence(law: Float[Array, "*n"], other: Float[Array, "*n"]) -> Float[Array, ""]:
    """KL(law || other) = sum p (log p - log q); infinite where the other lacks mass."""
    some = law > 0
    ratio = jnp.log(jnp.where(some, law, 1.0)) - jnp.log(jnp.where(some, other, 1.0))
    return jnp.sum(law * ratio)


def mutual_information(joint: Joint) -> Float[Array, ""]:
    """I of the two indices of a joint law: KL from it to the product of its margins."""
    return kl_divergence(joint, _product(joint))


def nwj_bound(f: Joint, joint: Joint) -> Float[Array, ""]:
    """E f - 1/e E e^f, the second mean under the product of margins, for f[s, s']; at most I."""
    return jnp.sum(joint * f) - jnp.sum(_product(joint) * jnp.exp(f - 1))


def donsker_varadhan_bound(f: Joint, joint: Joint) -> Float[Array, ""]:
    """E f - log E e^f, the second mean under the product of margins; from `nwj_bound` to I."""
    return jnp.sum(joint * f) - jnp.log(jnp.sum(_product(joint) * jnp.exp(f)))


def optimal_critic(joint: Joint) -> Float[Array, "s s"]:
    """f = 1 + log(omega(s, s') / (d(s) d+(s'))), at which both bounds are equal to I."""
    return 1 + jnp.log(joint) - jnp.log(_product(joint))


def policy_entropy(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, ""]:
    """E_d H(pi(.|s)), the action part of the occupancy's entropy H(d) + E_d H(pi(.|s))."""
    states = state_occupancy(transitions, policy, start, gamma=gamma)
    return jnp.sum(states[:, None] * entr(policy))


def per_time_bound(
    transitions: Transitions,
    policy: Policy,
    start: Law,
    *,
    gamma: float,
    tolerance: float = 1e-14,
) -> Float[Array, ""]:
    """(1-g) H(p_0) + g (1-g) sum_t g^t I(s_{t+1}; s_t) + E_d H(pi), g = gamma; at most H(rho).

    The sum ends where g^t < `tolerance`. Raises: ValueError unless 0 < gamma < 1.
    """
    require({"gamma": gamma}, ("gamma",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    moves = state_transitions(transitions, policy)
    weights = gamma ** np.arange(math.ceil(math.log(tolerance) / math.log(gamma)))

    def step(law: Law, weight: Float[Array, ""]) -> tuple[Law, Float[Array, ""]]:
        return law @ moves, weight * mutual_information(law[:, None] * moves)

    _, terms = jax.lax.scan(step, jnp.asarray(start, moves.dtype), jnp.asarray(weights))
    actions = policy_entropy(transitions, policy, start, gamma=gamma)
    return (1 - gamma) * (entropy(start) + gamma * jnp.sum(terms)) + actions


def mixture_bound(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, ""]:
    """(1 - gamma) H(p_0) + gamma I_omega(s'; s) + E_d H(pi): from `per_time_bound` to H(rho).

    A replay buffer can estimate it: omega is the law of its transitions.
    """
    joint = consecutive_states(transitions, policy, start, gamma=gamma)
    actions = policy_entropy(transitions, policy, start, gamma=gamma)
    return (1 - gamma) * entropy(start) + gamma * mutual_information(joint) + actions


def mixture_gap(
    transitions: Transitions, policy: Policy, start: Law, *, gamma: float
) -> Float[Array, ""]:
    """H(rho) - `mixture_bound`: H(d) - (1-g) H(p_0) - g H(d+), and g H(s'|s), with g = gamma.

    Both parts are at least 0; the first is a divergence of p_0 and d+, weighted by 1-g and g.
    """
    joint = consecutive_states(transitions, policy, start, gamma=gamma)
    states, following = joint.sum(axis=1), joint.sum(axis=0)
    divergence = entropy(states) - (1 - gamma) * entropy(start) - gamma * entropy(following)
    return divergence + gamma * (entropy(joint) - entropy(states))


def action_values(
    transitions: Transitions, policy: Policy, reward: Float[Array, "s a"], *, gamma: float
) -> Float[Array, "s a"]:
    """Q(s, a) = E sum_t gamma^t r(s_t, a_t) from s, a on: plain policy evaluation, not normalised.

    Raises: ValueError unless 0 <= gamma < 1.
    """
    _require_gamma(gamma)
    bellman = jnp.eye(len(policy)) - gamma * state_transitions(transitions, policy)
    values = jnp.linalg.solve(bellman, jnp.sum(policy * reward, axis=1))
    return reward + gamma * transitions @ values


def policy_gradient(
    transitions: Transitions,
    policy: Policy,
    start: Law,
    reward: Float[Array, "s a"],
    *,
    gamma: float,
) -> Float[Array, "s a"]:
    """The gradient of J(r) = E_rho r, r held fixed, in the logits of a softmax policy.

    It is rho(s, a) (Q(s, a) - V(s)). With r = log rho - log rho_E it is the gradient of
    KL(rho || rho_E).
    """
    values = action_values(transitions, policy, reward, gamma=gamma)
    advantage = values - jnp.sum(policy * values, axis=1, keepdims=True)
    return occupancy(transitions, policy, start, gamma=gamma) * advantage


def _product(joint: Joint) -> Float[Array, "s s"]:
    return joint.sum(axis=1)[:, None] * joint.sum(axis=0)[None]


def _require_gamma(gamma: float) -> None:
    require({"gamma": gamma}, ("gamma",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
