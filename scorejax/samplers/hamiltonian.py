# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo on a density known up to its normaliser, with a standard leapfrog.

The leapfrog ends with half a kick, so that it is its own inverse once momenta change sign, and
momenta are drawn anew at every transition, accepted or not: the density is exactly invariant. (The
published score-matching code does neither.)

Source: Neal 2011, arXiv:1206.1901, Sections 2.3 and 3.2.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import expand, sum_except_batch
from scorejax.random import Rng, draw_rows, normal, split

LogProb = Callable[[Float[Array, "b *d"]], Float[Array, "b"]]
"""x (b, *d) -> (b,): log p up to a constant, in nats."""


class Moved(NamedTuple):
    """State of each chain after a transition, and the acceptance probability of its proposal."""

    x: Float[Array, "b *d"]
    acceptance: Float[Array, "b"]


def leapfrog(
    score: Callable[[Float[Array, "b *d"]], Float[Array, "b *d"]],
    x: Float[Array, "b *d"],
    momentum: Float[Array, "b *d"],
    *,
    step_size: float | Float[Array, ""],
    num_steps: int,
) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"]]:
    """Position and momentum after num_steps steps in the potential -log p, with unit masses.

    Makes num_steps + 1 score calls. The error of the energy is O(step_size^2).
    """

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, momentum, force = state
        momentum = momentum + step_size / 2 * force
        x = x + step_size * momentum
        force = score(x)
        return x, momentum + step_size / 2 * force, force

    return jax.lax.fori_loop(0, num_steps, step, (x, momentum, score(x)))[:2]


def hamiltonian_transition(
    rng: Rng,
    log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    step_size: float | Float[Array, ""],
    num_steps: int,
) -> Moved:
    """One transition of each chain: draw a momentum, follow the leapfrog, accept or reject.

    Proposals at which log p is NaN are rejected. With keys (b,) each chain draws from its own key.
    Makes num_steps + 1 gradient calls.
    """
    uniform = functools.partial(jax.random.uniform, dtype=x.dtype)
    momentum_rng, accept_rng = split(rng)
    momentum = normal(momentum_rng, x.shape, x.dtype)
    score = jax.grad(lambda x: jnp.sum(log_prob(x)))
    moved, turned = leapfrog(score, x, momentum, step_size=step_size, num_steps=num_steps)
    kinetic = sum_except_batch(turned**2 - momentum**2) / 2
    log_ratio = log_prob(moved) - log_prob(x) - kinetic
    acceptance = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    level = draw_rows(uniform, accept_rng, x.shape[:1])
    accepted = expand(level, x) < expand(acceptance, x)
    return Moved(jnp.where(accepted, moved, x), acceptance)
