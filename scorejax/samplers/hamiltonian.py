# SPDX-License-Identifier: Apache-2.0
"""Hamiltonian Monte Carlo and MALA on a density known up to its normaliser.

A transition draws a momentum, follows a leapfrog and accepts or rejects its end. The leapfrog ends
with half a kick, so that it is its own inverse once momenta change sign, and momenta are drawn anew
at every transition, accepted or not: the density is exactly invariant, and transitions are
reversible. (The published score-matching code does neither.) With one step it is the
Metropolis-adjusted Langevin algorithm (MALA): the proposal is x + s^2 / 2 score(x) + s z, s being
the step size, and the change of kinetic energy is the logarithm of the ratio of its densities.

A chain of `hamiltonian_move` carries log p and its score at each state, so that a transition of
`num_steps` makes num_steps gradient calls, not num_steps + 1.

Source: Neal 2011, arXiv:1206.1901, Sections 2.3, 3.2 and 5.2.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import expand, sum_except_batch
from scorejax.random import Rng, draw_rows, normal, split

LogProb = Callable[[Float[Array, "b *d"]], Float[Array, "b"]]
"""x (b, *d) -> (b,): log p up to a constant, in nats."""
StepSize = float | Float[Array, ""] | Float[Array, "b"]
"""One step size for all chains, or one for each."""


class Moved(NamedTuple):
    """State of each chain after a transition, and the acceptance probability of its proposal."""

    x: Float[Array, "b *d"]
    acceptance: Float[Array, "b"]


class Point(NamedTuple):
    """State of each chain, log p in nats and its score there.

    `parts` is a tree of arrays (b, ...) from which another density's log p and score at x follow.
    """

    x: Float[Array, "b *d"]
    log_prob: Float[Array, "b"]
    score: Float[Array, "b *d"]
    parts: Any = ()


Evaluate = Callable[[Float[Array, "b *d"]], Point]
"""x -> its Point; one gradient call."""


def make_evaluate(log_prob: LogProb) -> Evaluate:
    """Makes the function that evaluates log_prob and its score together."""

    def evaluate(x: Float[Array, "b *d"]) -> Point:
        return Point(x, *value_and_score(log_prob, x))

    return evaluate


def value_and_score(
    log_prob: LogProb, x: Float[Array, "b *d"]
) -> tuple[Float[Array, "b"], Float[Array, "b *d"]]:
    """log p and its gradient at x."""
    values, pull_back = jax.vjp(log_prob, x)
    return values, pull_back(jnp.ones_like(values))[0]


def leapfrog(
    evaluate: Evaluate,
    point: Point,
    momentum: Float[Array, "b *d"],
    *,
    step_size: StepSize,
    num_steps: int,
) -> tuple[Point, Float[Array, "b *d"]]:
    """Point and momentum after num_steps steps in the potential -log p, with unit masses.

    Makes num_steps gradient calls. The error of the energy is O(step_size^2).
    """
    step_size = jnp.asarray(step_size, point.x.dtype)
    size = expand(step_size, point.x) if step_size.ndim else step_size

    def step(_: Any, state: tuple[Point, Array]) -> tuple[Point, Array]:
        point, momentum = state
        momentum = momentum + size / 2 * point.score
        point = evaluate(point.x + size * momentum)
        return point, momentum + size / 2 * point.score

    if num_steps == 1:  # Convolutions are slow in the loops of XLA's CPU compiler.
        return step(0, (point, momentum))
    return jax.lax.fori_loop(0, num_steps, step, (point, momentum))


def propose(
    rng: Rng, evaluate: Evaluate, point: Point, *, step_size: StepSize, num_steps: int
) -> tuple[Point, Float[Array, "b"]]:
    """The end of a leapfrog from a random momentum, and the probability to accept it.

    Makes num_steps gradient calls. The probability is 0 where log p of the end is NaN.
    """
    momentum = normal(rng, point.x.shape, point.x.dtype)
    end, turned = leapfrog(evaluate, point, momentum, step_size=step_size, num_steps=num_steps)
    kinetic = sum_except_batch(turned**2 - momentum**2) / 2
    log_ratio = end.log_prob - point.log_prob - kinetic
    acceptance = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    return end, acceptance


def hamiltonian_move(
    rng: Rng, evaluate: Evaluate, point: Point, *, step_size: StepSize, num_steps: int
) -> tuple[Point, Float[Array, "b"]]:
    """`hamiltonian_transition` from a point to a point: makes num_steps gradient calls."""
    momentum_rng, accept_rng = split(rng)
    end, acceptance = propose(
        momentum_rng, evaluate, point, step_size=step_size, num_steps=num_steps
    )
    uniform = functools.partial(jax.random.uniform, dtype=acceptance.dtype)
    level = draw_rows(uniform, accept_rng, acceptance.shape)
    keep = lambda new, old: jnp.where(expand(level, new) < expand(acceptance, new), new, old)
    return jax.tree.map(keep, end, point), acceptance


def hamiltonian_transition(
    rng: Rng,
    log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    step_size: StepSize,
    num_steps: int,
) -> Moved:
    """One transition of each chain: draw a momentum, follow the leapfrog, accept or reject.

    Proposals at which log p is NaN are rejected. With keys (b,) each chain draws from its own key.
    Makes num_steps + 1 gradient calls.
    """
    evaluate = make_evaluate(log_prob)
    options = {"step_size": step_size, "num_steps": num_steps}
    point, acceptance = hamiltonian_move(rng, evaluate, evaluate(x), **options)
    return Moved(point.x, acceptance)


def langevin_transition(
    rng: Rng, log_prob: LogProb, x: Float[Array, "b *d"], *, step_size: StepSize
) -> Moved:
    """One transition of MALA; `step_size` is the standard deviation of the proposal's noise.

    Makes two gradient calls; a chain of `hamiltonian_move` with num_steps=1 makes one for each
    transition.
    """
    return hamiltonian_transition(rng, log_prob, x, step_size=step_size, num_steps=1)


def adapted(
    step_size: Float[Array, ""],
    acceptance: Float[Array, "b"],
    *,
    target: float,
    gain: float | Float[Array, ""] = 1.0,
) -> Float[Array, ""]:
    """The step size for the next transition, longer if the mean acceptance exceeds `target`.

    A gain of one follows densities that change; one that falls settles where they do not. A chain
    whose step size depends on its own past is biased: adapt first, then hold the size.
    """
    return step_size * jnp.exp(gain * (jnp.mean(acceptance) - target))
