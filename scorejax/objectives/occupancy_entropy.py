# SPDX-License-Identifier: Apache-2.0
"""The entropy of a policy's occupancy, bounded from below, as a reward.

With d the discounted occupancy of states s, d+ that of next states s' and omega their joint law,

    H(occupancy) >= (1 - gamma) H(p_0) + gamma I(s'; s) + E_d H(pi(.|s)),
    I(s'; s) >= E_omega f(s', s) - 1/e E_{d x d+} e^f(s', s)            for every critic f.

The gradient of the right side in the policy is the policy gradient of the return of
-log pi(a|s) + `saelbo_reward`; the return is another number than the bound (`nwj_bound`). The first
inequality is for discrete states; in continuous spaces it lacks gamma times the entropy of s' given
s. e^f is averaged over negatives: next states and states that do not belong together. States of a
replay buffer are those of older policies, undiscounted, and estimate the margins with a bias.

Source: Kim et al. 2021, arXiv:2010.09808, for bounds of this kind; the bound by d and d+ in place
of the laws at each time is ours. Nguyen et al. 2010, arXiv:0809.0853, for I.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from scipy.special import digamma

from scorejax.choices import require
from scorejax.numerics import log_mean_exp

Critic = Callable[[Float[Array, "n d"], Float[Array, "n d"]], Float[Array, "n"]]
"""f: (next_state, state) -> (n,) nats, row by row. `functools.partial` sets its constants."""
Rows = Float[Array, "b"]
States = Float[Array, "b d"]
Negatives = Float[Array, "_ d"] | None


def log_displacement(next_state: States, state: States, *, floor: float = 1e-6) -> Rows:
    """1 + log |s' - s|^2, so that e^f / e is the square displacement; it is at least `floor`.

    Its reward is for moving fast, in units of the states, and farther than others lie apart.
    """
    square = jnp.sum((next_state - state) ** 2, axis=1)
    return 1 + jnp.log(jnp.maximum(square, floor))


def gaussian_similarity(next_state: States, state: States, *, scale: float) -> Rows:
    """1 - |s' - s|^2 / (2 scale^2): the state that follows is near, and others are not."""
    return 1 - jnp.sum((next_state - state) ** 2, axis=1) / (2 * scale**2)


def linear_gaussian_critic(
    next_state: States,
    state: States,
    *,
    transition: Float[Array, "d d"],
    noise: Float[Array, "d d"],
    covariance: Float[Array, "d d"],
) -> Rows:
    """1 + log N(s'; F s, Q) - log N(s'; 0, S): the best f of a linear-Gaussian system at rest.

    F is `transition`, Q the covariance of the `noise`, S = F S F' + Q the states' `covariance`.
    """
    given = _gaussian_log_prob(next_state - state @ transition.T, noise)
    return 1 + given - _gaussian_log_prob(next_state, covariance)


def pairwise(
    f: Critic, next_state: Float[Array, "n d"], state: Float[Array, "m d"]
) -> Float[Array, "n m"]:
    """f of each next state with each state."""
    rows = lambda s: f(next_state, jnp.broadcast_to(s[None], next_state.shape))
    return jax.vmap(rows, out_axes=1)(state)


class LogMeans(NamedTuple):
    """log E e^f over the margins, in nats: E_t' e^f(t', s) and E_t e^f(s', t) of each row, and
    E e^f(t', t) over both."""

    next_state: Float[Array, "b"]
    state: Float[Array, "b"]
    pairs: Float[Array, ""]


def log_means(
    f: Critic,
    next_state: States,
    state: States,
    negatives_next: Negatives = None,
    negatives_state: Negatives = None,
    *,
    which: Int[Array, "b"] | None = None,
) -> LogMeans:
    """Estimates log E e^f from negatives, of which row j of both is one transition.

    A pair of a transition's own two states is left out, which would bias the mean by 1 / m. Without
    negatives each row has the others of the batch: one matrix of pairs in the place of three. Rows
    of this batch with equal numbers in `which` are one transition, drawn more than once.
    Raises: ValueError for one kind of negatives without the other, other numbers of both, or fewer
    than two transitions.
    """
    if (negatives_next is None) != (negatives_state is None):
        raise ValueError("negatives_next and negatives_state need to be given together, or neither")
    if negatives_next is None:
        which = jnp.arange(len(state)) if which is None else which
        pairs = _without_own(pairwise(f, next_state, state), which)
        others = jnp.sum(which[:, None] != which[None], axis=0)
        by_state, by_next = (jax.nn.logsumexp(pairs, axis=i) - jnp.log(others) for i in (0, 1))
        return LogMeans(by_state, by_next, jax.nn.logsumexp(pairs) - jnp.log(others.sum()))
    if len(negatives_next) != len(negatives_state):
        lengths = f"{len(negatives_next)} next states, {len(negatives_state)} states"
        raise ValueError(f"negatives need to be transitions, as many of both; got {lengths}")
    pairs = pairwise(f, negatives_next, negatives_state)
    pairs = _without_own(pairs, jnp.arange(len(pairs)))
    return LogMeans(
        log_mean_exp(pairwise(f, negatives_next, state), axis=0),
        log_mean_exp(pairwise(f, next_state, negatives_state), axis=1),
        jax.nn.logsumexp(pairs) - math.log(len(pairs) * (len(pairs) - 1)),
    )


def nwj_bound(
    f: Critic,
    next_state: States,
    state: States,
    negatives_next: Negatives = None,
    negatives_state: Negatives = None,
    *,
    which: Int[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """Estimates E f - 1/e E e^f <= I(s'; s), in nats, without bias; equal at f = 1 + log ratio.

    The first mean is over the rows, the second over the pairs of `log_means`. Its negative is the
    loss of a learned critic. Source: Nguyen et al. 2010, arXiv:0809.0853.
    """
    means = log_means(f, next_state, state, negatives_next, negatives_state, which=which)
    return jnp.mean(f(next_state, state)) - jnp.exp(means.pairs - 1)


def donsker_varadhan_bound(
    f: Critic,
    next_state: States,
    state: States,
    negatives_next: Negatives = None,
    negatives_state: Negatives = None,
    *,
    which: Int[Array, "b"] | None = None,
) -> Float[Array, ""]:
    """E f - log E e^f >= `nwj_bound`, in nats, which does not change when f gains a constant.

    Of exact means it is at most I(s'; s); the logarithm of a mean of few pairs is biased upward.
    """
    means = log_means(f, next_state, state, negatives_next, negatives_state, which=which)
    return jnp.mean(f(next_state, state)) - means.pairs


def reward_of_means(f: Rows, means: LogMeans, *, gamma: float, centre: bool = False) -> Rows:
    """gamma f(s', s) - gamma / e (E_t' e^f(t', s) + E_t e^f(s', t)) for f (b,) and its means.

    Both margins depend on the policy: the mean of e^f stands in the bound once and here twice.
    `centre` adds to f the constant that makes the bound largest (`donsker_varadhan_bound`).
    """
    shift = 1 - means.pairs if centre else 0.0
    margins = jnp.exp(means.next_state + shift - 1) + jnp.exp(means.state + shift - 1)
    return gamma * (f + shift - margins)


def saelbo_reward(
    f: Critic,
    state: States,
    next_state: States,
    negatives_next: Negatives = None,
    negatives_state: Negatives = None,
    *,
    gamma: float,
    centre: bool = False,
) -> Rows:
    """The reward whose policy gradient is that of gamma times `nwj_bound` with f held fixed.

    It carries no gradient. With `centre` it is that of gamma times `donsker_varadhan_bound`, and
    does not depend on constants in f. Negatives as in `log_means`: of recent transitions, or by
    default the other rows of the batch.
    Raises: ValueError as `log_means`, or unless 0 <= gamma < 1.
    """
    require({"gamma": gamma}, ("gamma",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    means = log_means(f, next_state, state, negatives_next, negatives_state)
    reward = reward_of_means(f(next_state, state), means, gamma=gamma, centre=centre)
    return jax.lax.stop_gradient(reward)


def knn_entropy_reward(
    state: States, others: Negatives = None, *, k: int = 5, floor: float = 1e-6
) -> Rows:
    """-log density of each state in nats, from the distance to the k-th nearest of the others.

    Its mean estimates the differential entropy of the states, without a bound and with a bias that
    falls with their number. Without `others` each row has the rest of the batch. Distances are at
    least `floor`, so that states met twice leave the reward finite.
    Raises: ValueError unless 1 <= k <= the number of others.
    Source: Kozachenko & Leonenko 1987; as a reward Liu & Abbeel 2021, arXiv:2103.04551.
    """
    distance = lambda a, b: jnp.sqrt(jnp.sum((a - b) ** 2, axis=1))
    if others is None:
        distances = _without_own(pairwise(distance, state, state), jnp.arange(len(state)), jnp.inf)
        num_others = len(state) - 1
    else:
        distances, num_others = pairwise(distance, state, others), len(others)
    require({"k": k}, ("k",), lambda v: 1 <= v <= num_others, f"to lie in 1 .. {num_others}")
    nearest = -jax.lax.top_k(-distances, k)[0][:, -1]
    dim = state.shape[1]
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    # The mass of the ball around a point that holds k of n others is Beta(k, n + 1 - k).
    log_mass = float(digamma(k) - digamma(num_others + 1))
    reward = dim * jnp.log(jnp.maximum(nearest, floor)) + log_ball - log_mass
    return jax.lax.stop_gradient(reward)


def _without_own(
    pairs: Float[Array, "n n"], which: Int[Array, "n"], value: float = -math.inf
) -> Float[Array, "n n"]:
    if len(pairs) < 2:
        raise ValueError(f"negatives need at least 2 transitions; got {len(pairs)}")
    return jnp.where(which[:, None] == which[None], value, pairs)


def _gaussian_log_prob(x: States, covariance: Float[Array, "d d"]) -> Rows:
    white = jnp.linalg.solve(covariance, x.T).T
    log_det = jnp.linalg.slogdet(2 * math.pi * covariance)[1]
    return -(jnp.sum(x * white, axis=1) + log_det) / 2
