# SPDX-License-Identifier: Apache-2.0
"""Linear systems with Gaussian noise and policies, solved: occupancies, entropies, soft control.

    s' = A s + B u + w,  w ~ N(0, W);     u = -K s + e,  e ~ N(0, E).

Started in its stationary law N(0, S), a stable system has the same occupancy N(0, C) of (s, u) for
every discount. Entropies and divergences are in nats, of densities in the units of s and u. All
but `soft_lqr` are differentiable in the matrices, so that a policy can be fitted to an expert.

Source: standard; arXiv:2010.09808 for the objective.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from scorejax.choices import require


class LinearSystem(NamedTuple):
    """s' = A s + B u + w with w ~ N(0, noise)."""

    a: Float[Array, "s s"]
    b: Float[Array, "s u"]
    noise: Float[Array, "s s"]


class LinearPolicy(NamedTuple):
    """u = -gain s + e with e ~ N(0, noise)."""

    gain: Float[Array, "u s"]
    noise: Float[Array, "u u"]


def scalar_system(a: ArrayLike, b: ArrayLike, sigma: ArrayLike) -> LinearSystem:
    """The system of one state and one action, with noise of standard deviation sigma."""
    square = lambda x: jnp.asarray(x, float).reshape(1, 1)
    return LinearSystem(square(a), square(b), square(sigma) ** 2)


def scalar_policy(gain: ArrayLike, std: ArrayLike) -> LinearPolicy:
    """The policy of one state and one action."""
    square = lambda x: jnp.asarray(x, float).reshape(1, 1)
    return LinearPolicy(square(gain), square(std) ** 2)


def closed_loop(system: LinearSystem, policy: LinearPolicy) -> tuple[Array, Array]:
    """F = A - B K and Q = B E B' + W (s, s): s' given s is N(F s, Q)."""
    noise = system.b @ policy.noise @ system.b.T + system.noise
    return system.a - system.b @ policy.gain, noise


def stationary_covariance(system: LinearSystem, policy: LinearPolicy) -> Float[Array, "s s"]:
    """S = F S F' + Q; it is no covariance unless all eigenvalues of F lie in the unit circle."""
    move, noise = closed_loop(system, policy)
    dim = len(move)
    flat = jnp.linalg.solve(jnp.eye(dim * dim) - jnp.kron(move, move), noise.reshape(-1))
    return flat.reshape(dim, dim)


def occupancy_covariance(system: LinearSystem, policy: LinearPolicy) -> Float[Array, "n n"]:
    """C of the occupancy N(0, C) of (s, u); its determinant is det S det E."""
    states = stationary_covariance(system, policy)
    cross = -states @ policy.gain.T
    actions = policy.gain @ states @ policy.gain.T + policy.noise
    return jnp.block([[states, cross], [cross.T, actions]])


def gaussian_entropy(covariance: Float[Array, "n n"]) -> Float[Array, ""]:
    """Differential entropy of a Gaussian."""
    return jnp.linalg.slogdet(2 * math.pi * math.e * covariance)[1] / 2


def gaussian_kl(covariance: Float[Array, "n n"], other: Float[Array, "n n"]) -> Float[Array, ""]:
    """KL(N(0, covariance) || N(0, other))."""
    log_ratio = jnp.linalg.slogdet(other)[1] - jnp.linalg.slogdet(covariance)[1]
    return (jnp.trace(jnp.linalg.solve(other, covariance)) - len(covariance) + log_ratio) / 2


def mean_log_density(
    covariance: Float[Array, "n n"], other: Float[Array, "n n"]
) -> Float[Array, ""]:
    """Mean of log N(x; 0, other) over x ~ N(0, covariance): the reward of imitating `other`."""
    log_det = jnp.linalg.slogdet(2 * math.pi * other)[1]
    return -(jnp.trace(jnp.linalg.solve(other, covariance)) + log_det) / 2


def occupancy_entropy(system: LinearSystem, policy: LinearPolicy) -> Float[Array, ""]:
    """H of the occupancy, H(s) + `policy_entropy`."""
    return gaussian_entropy(occupancy_covariance(system, policy))


def policy_entropy(policy: LinearPolicy) -> Float[Array, ""]:
    """H(pi(.|s)), the same in all states."""
    return gaussian_entropy(policy.noise)


def mutual_information(system: LinearSystem, policy: LinearPolicy) -> Float[Array, ""]:
    """I(s'; s) of consecutive states, H(s) - H(s'|s)."""
    _, noise = closed_loop(system, policy)
    return gaussian_entropy(stationary_covariance(system, policy)) - gaussian_entropy(noise)


class SoftLQR(NamedTuple):
    """The optimum of entropy-regularised linear-quadratic control.

    The soft value is V(s) = -s' P s + offset and the action value is
    Q(s, u) = -(x' H x) + action_offset with x = (s, u).
    """

    p: Float[np.ndarray, "s s"]
    policy: LinearPolicy
    offset: float
    h: Float[np.ndarray, "n n"]
    action_offset: float


def soft_lqr(
    system: LinearSystem, cost: Float[ArrayLike, "n n"], *, gamma: float, alpha: float
) -> SoftLQR:
    """Maximises E sum_t gamma^t (alpha H(pi(.|s_t)) - x_t' cost x_t) with x = (s, u), in float64.

    With cost = [[q, n], [n, r]] the best policy is N(-K s, alpha / 2 M^-1), M = r + gamma B' P B.
    Raises: ValueError unless 0 < gamma < 1 and alpha > 0; LinAlgError if no policy keeps the cost
    finite.
    """
    require({"gamma": gamma}, ("gamma",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    require({"alpha": alpha}, ("alpha",), lambda v: 0 < v < math.inf, "to be positive and finite")
    a, b, noise = (np.asarray(matrix, float) for matrix in system)
    cost, dim, root = np.asarray(cost, float), len(a), math.sqrt(gamma)
    parts = cost[:dim, :dim], cost[dim:, dim:]
    p = scipy.linalg.solve_discrete_are(root * a, root * b, *parts, s=cost[:dim, dim:])
    both = np.concatenate([a, b], axis=1)
    h = cost + gamma * both.T @ p @ both
    m = h[dim:, dim:]
    gain = np.linalg.solve(m, h[dim:, :dim])
    covariance = alpha / 2 * np.linalg.inv(m)
    log_normalizer = np.linalg.slogdet(2 * math.pi * covariance)[1] / 2
    spread = gamma * np.trace(p @ noise)
    offset = float((alpha * log_normalizer - spread) / (1 - gamma))
    policy = LinearPolicy(gain, covariance)
    return SoftLQR(p, policy, offset, h, gamma * offset - float(spread))
