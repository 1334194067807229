# SPDX-License-Identifier: Apache-2.0
"""The normaliser of a density by annealed importance sampling.

Draws of a density p_0 with a known normaliser walk through p_1 .. p_k, by transitions that leave
each invariant, and accumulate

    log w = sum_i (log p_i - log p_{i-1})(x_{i-1}),    x_i by a transition of p_i from x_{i-1}.

The mean of w is an unbiased estimate of Z_k / Z_0, whether or not the walks reach equilibrium; the
mean of log w is below its logarithm. `bidirectional` adds the bound from the other side.

Source: Neal 2001, arXiv:physics/9803008; Wu et al. 2017, arXiv:1611.04273, for the betas.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.density.annealing_path import Ends, Path, at_beta
from scorejax.numerics import log_mean_exp
from scorejax.random import Rng, draw_rows, fold_in, split
from scorejax.samplers.hamiltonian import Evaluate, Point, adapted, hamiltonian_move

NUM_FIRST, NUM_TUNING = 20, 100

Transition = Callable[[Rng, Array, Evaluate, Point], tuple[Point, Float[Array, "b"]]]
"""(rng, i, evaluate, point) -> (new point, acceptance); leaves p_i, which `evaluate` evaluates,
invariant and is reversible."""


class Annealed(NamedTuple):
    """Log-weights in nats, the ends x of the walks, and the mean acceptance at each step."""

    log_weights: Float[Array, "b"]
    x: Float[Array, "b *d"]
    acceptance: Float[Array, "k"]


class Normalizer(NamedTuple):
    """An estimate of log Z, its standard error, and the effective number of draws."""

    log_z: Float[Array, ""]
    standard_error: Float[Array, ""]
    effective_size: Float[Array, ""]


def importance_normalizer(log_weights: Float[Array, "n"]) -> Normalizer:
    """log Z from log(p~ / q) at independent draws from a density q that covers p~.

    The estimate of Z is unbiased; that of log Z is too small on average, by half the squared
    standard error, so that likelihoods are too large. The effective size is (sum w)^2 / sum w^2;
    below about a hundred, neither it nor the standard error is reliable.
    """
    num = len(log_weights)
    shares = jax.nn.softmax(log_weights)
    size = 1 / jnp.sum(shares**2)
    error = jnp.sqrt(jnp.maximum(1 / size - 1 / num, 0.0))
    return Normalizer(log_mean_exp(log_weights), error, size)


def annealed_importance(
    rng: Rng, path: Path, x: Float[Array, "b *d"], *, transition: Transition
) -> Annealed:
    """Walks x, draws of the first density of the path, to its last.

    With keys (b,) each walk draws from its own key. Beside those of the transitions it makes a
    gradient call of both ends of each bridge that it enters. The sum of log w is compensated: its
    rounding is half a unit of the last digit of log w, however many steps there are; what remains
    is that of the log-densities themselves.
    """
    make = lambda table: jnp.asarray(table, x.dtype)
    starts, stops = path.starts, path.stops
    steps = (np.arange(path.num_steps) + 1, path.bridges, path.enters, stops - starts, stops)
    changes_bridge = path.enters.any()

    def step(state: tuple[Array, Ends, Array, Array], inputs: tuple) -> tuple[tuple, Array]:
        x, ends, total, lost = state
        k, bridge, enters, rise, beta = inputs
        if changes_bridge:
            ends = jax.lax.cond(enters, lambda: path.ends(bridge, x), lambda: ends)
        total, lost = _compensated(total, lost, rise * (ends.high - ends.low))
        evaluate = lambda x: path.evaluate(bridge, beta, x)
        moved, acceptance = transition(fold_in(rng, k), k, evaluate, at_beta(beta, x, ends))
        return (moved.x, moved.parts, total, lost), jnp.mean(acceptance)

    ends = path.ends(jnp.asarray(path.bridges[0]), x)
    start = x, ends, jnp.zeros_like(ends.low), jnp.zeros_like(ends.low)
    inputs = (*map(jnp.asarray, steps[:3]), *map(make, steps[3:]))
    (x, _, log_weights, _), acceptance = jax.lax.scan(step, start, inputs)
    return Annealed(log_weights, x, acceptance)


def _compensated(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """Kahan's sum: total + term, and what its rounding has added too much."""
    term = term - lost
    new = total + term
    lost = (new - total) - term
    return new, jnp.where(jnp.isfinite(lost), lost, 0.0)  # a weight of zero stays zero


def make_hamiltonian_transition(
    step_sizes: Float[Array, "positions"], *, num_steps: int, jitter: float = 0.0
) -> Transition:
    """Makes transitions of Hamiltonian Monte Carlo; step_sizes[i] is the step size at p_i.

    MALA if num_steps is 1. Each chain multiplies its steps by 1 + jitter u, u uniform on [-1, 1]:
    trajectories of one length return to where they began in directions of some variances, and do
    not mix those at all. A transition makes num_steps gradient calls of both ends of its bridge.

    Raises: ValueError unless 0 <= jitter < 1.
    """
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter needs to lie in [0, 1); got {jitter}.")

    def transition(rng: Rng, k: Array, evaluate: Evaluate, point: Point) -> tuple[Point, Array]:
        size = step_sizes[k]
        if jitter:
            jitter_rng, rng = split(rng)
            uniform = functools.partial(jax.random.uniform, minval=-1, dtype=size.dtype)
            size = size * (1 + jitter * draw_rows(uniform, jitter_rng, point.x.shape[:1]))
        return hamiltonian_move(rng, evaluate, point, step_size=size, num_steps=num_steps)

    return transition


def tuned_step_sizes(
    rng: PRNGKeyArray,
    path: Path,
    x: Float[Array, "b *d"],
    *,
    num_steps: int,
    first: float = 0.1,
    target: float = 0.65,
) -> Float[Array, "positions"]:
    """Step sizes for p_0 .. p_k at which the mean acceptance is about `target`.

    They are tuned along one walk of x, draws of p_0. Use them for other draws: a walk whose step
    sizes depend on itself is biased. Reversed, they belong to the reversed path.
    """

    def step(state: tuple[Array, Array], inputs: tuple) -> tuple[tuple, Array]:
        (x, size), (key, bridge, beta) = state, inputs
        evaluate = lambda x: path.evaluate(bridge, beta, x)
        options = {"step_size": size, "num_steps": num_steps}
        moved, acceptance = hamiltonian_move(key, evaluate, evaluate(x), **options)
        return (moved.x, adapted(size, acceptance, target=target)), size

    # The first transitions stay at p_0 itself, until the size has settled.
    bridges, betas = path.positions()
    stay = lambda table: np.concatenate([np.repeat(table[:1], NUM_FIRST), table])
    keys = jax.random.split(rng, NUM_FIRST + len(betas))
    inputs = keys, jnp.asarray(stay(bridges)), jnp.asarray(stay(betas), x.dtype)
    return jax.lax.scan(step, (x, jnp.asarray(first, x.dtype)), inputs)[1][NUM_FIRST:]


def hamiltonian_annealing(
    rng: PRNGKeyArray,
    path: Path,
    draw: Callable[[PRNGKeyArray], Float[Array, "b *d"]],
    *,
    num_steps: int = 5,
) -> Annealed:
    """`annealed_importance` of draws of p_0, by transitions tuned on other draws of it.

    Makes k num_steps gradient calls of both ends on all rows of `draw`, and about as many on a
    hundred rows.
    """
    tune_rng, first_rng, start_rng, walk_rng = jax.random.split(rng, 4)
    sizes = tuned_step_sizes(tune_rng, path, draw(first_rng)[:NUM_TUNING], num_steps=num_steps)
    transition = make_hamiltonian_transition(sizes, num_steps=num_steps)
    return annealed_importance(walk_rng, path, draw(start_rng), transition=transition)
