# SPDX-License-Identifier: Apache-2.0
"""The normaliser of a density by annealed importance sampling.

Draws of a density q with a known normaliser walk through p_k ~ q^(1 - beta_k) p^beta_k, beta from 0
to 1, by transitions that leave each p_k invariant, and accumulate

    log w = sum_k (beta_k - beta_{k-1}) (log p - log q)(x_{k-1}).

The mean of w is an unbiased estimate of the normaliser of p, whether or not the walks reach
equilibrium; the mean of log w is below its logarithm.

Source: Neal 2001, arXiv:physics/9803008; Wu et al. 2017, arXiv:1611.04273, for the betas.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.numerics import log_mean_exp
from scorejax.random import Rng, fold_in
from scorejax.samplers.hamiltonian import LogProb, Moved, hamiltonian_transition

NUM_FIRST, NUM_TUNING = 20, 100

Transition = Callable[[Rng, Array, Float[Array, "b *d"]], Moved]
"""(rng, k, x) -> new states of the chains x; leaves p_k invariant."""


class Annealed(NamedTuple):
    """Log-weights in nats, the ends x of the walks, and the mean acceptance at each k."""

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


def sigmoid_betas(num: int, *, reach: float = 4.0) -> Float[np.ndarray, "k"]:
    """`num` betas from 0 to 1, dense at both ends: a logistic curve over +-reach.

    Raises: ValueError unless num >= 2 and reach > 0.
    """
    if num < 2 or not reach > 0:
        raise ValueError(f"betas need num >= 2 and reach > 0; got num={num}, reach={reach}.")
    curve = 1 / (1 + np.exp(-np.linspace(-reach, reach, num)))
    return (curve - curve[0]) / (curve[-1] - curve[0])


def annealed_importance(
    rng: Rng,
    log_prob: LogProb,
    base_log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    betas: Float[np.ndarray, "k"],
    transition: Transition,
) -> Annealed:
    """Anneals x, independent draws of the base, to the density of log_prob.

    With keys (b,) each walk draws from its own key.
    Raises: ValueError unless betas rise from 0 to 1.
    """
    betas = np.asarray(betas)
    if not (betas[0] == 0 and betas[-1] == 1 and np.all(np.diff(betas) >= 0)):
        raise ValueError(f"betas need to rise from 0 to 1; got {betas[0]} to {betas[-1]}.")

    def step(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        x, log_weights = state
        rise = jnp.asarray(np.diff(betas), x.dtype)[k - 1]
        log_weights = log_weights + rise * (log_prob(x) - base_log_prob(x))
        moved = transition(fold_in(rng, k), k, x)
        return (moved.x, log_weights), jnp.mean(moved.acceptance)

    start = x, jnp.zeros(len(x), x.dtype)
    (x, log_weights), acceptance = jax.lax.scan(step, start, jnp.arange(1, len(betas)))
    return Annealed(log_weights, x, acceptance)


def hamiltonian_transitions(
    log_prob: LogProb,
    base_log_prob: LogProb,
    *,
    betas: Float[np.ndarray, "k"],
    step_sizes: Float[Array, "k"],
    num_steps: int,
) -> Transition:
    """Transitions of Hamiltonian Monte Carlo, with a step size for each beta."""

    def transition(rng: Rng, k: Array, x: Array) -> Moved:
        beta = jnp.asarray(betas, x.dtype)[k]
        between = lambda x: (1 - beta) * base_log_prob(x) + beta * log_prob(x)
        return hamiltonian_transition(rng, between, x, step_size=step_sizes[k], num_steps=num_steps)

    return transition


def tuned_step_sizes(
    rng: PRNGKeyArray,
    log_prob: LogProb,
    base_log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    betas: Float[np.ndarray, "k"],
    num_steps: int,
    first: float = 0.1,
    target: float = 0.65,
) -> Float[Array, "k"]:
    """Step sizes for `betas` at which the mean acceptance is about `target`.

    They are tuned along one walk of x, draws of the base. Use them for other draws: a walk whose
    step sizes depend on itself is biased.
    """

    def step(state: tuple, inputs: tuple[Array, Array]) -> tuple[tuple, Array]:
        (x, size), (key, k) = state, inputs
        move = hamiltonian_transitions(
            log_prob,
            base_log_prob,
            betas=betas,
            step_sizes=jnp.full(len(betas), size),
            num_steps=num_steps,
        )
        moved = move(key, k, x)
        return (moved.x, size * jnp.exp(jnp.mean(moved.acceptance) - target)), size

    # The first transitions stay at k = 0, the base itself, until the size has settled.
    numbers = np.concatenate([np.zeros(NUM_FIRST, int), np.arange(len(betas))])
    keys = jax.random.split(rng, len(numbers))
    start = x, jnp.asarray(first, x.dtype)
    return jax.lax.scan(step, start, (keys, jnp.asarray(numbers)))[1][NUM_FIRST:]


def hamiltonian_annealing(
    rng: PRNGKeyArray,
    log_prob: LogProb,
    base_log_prob: LogProb,
    draw: Callable[[PRNGKeyArray], Float[Array, "b *d"]],
    *,
    betas: Float[np.ndarray, "k"],
    num_steps: int = 5,
) -> Annealed:
    """`annealed_importance` of draws of the base, by transitions tuned on other draws of it.

    Makes k (num_steps + 1) gradient calls on all rows of `draw`, and about as many on a hundred
    rows.
    """
    tune_rng, first_rng, start_rng, walk_rng = jax.random.split(rng, 4)
    options = {"betas": betas, "num_steps": num_steps}
    few = draw(first_rng)[:NUM_TUNING]
    sizes = tuned_step_sizes(tune_rng, log_prob, base_log_prob, few, **options)
    transition = hamiltonian_transitions(log_prob, base_log_prob, step_sizes=sizes, **options)
    return annealed_importance(
        walk_rng, log_prob, base_log_prob, draw(start_rng), betas=betas, transition=transition
    )
