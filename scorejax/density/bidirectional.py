# SPDX-License-Identifier: Apache-2.0
"""Bounds of log Z from both sides: annealed importance sampling there and back.

Z = Z_k / Z_0 of a path. Weights of walks from draws of p_0 have the mean Z; weights of walks back,
from draws of p_k, have the mean 1 / Z. So (Jensen, Markov), for any number of walks and however
poorly they mix:

    lower = log mean w:         E[lower] <= log Z,   P(lower > log Z + b) <= e^-b,
    upper = -log mean w_back:   E[upper] >= log Z,   P(upper < log Z - b) <= e^-b.

The first pair always holds. The second needs starts whose law is p_k (they may be dependent). With
other starts `upper` bounds nothing: draws in one mode of two give log of that mode's share of Z,
and if the walks from p_0 miss the other mode as well, both meet at the wrong number. Draws by long
corrected chains from data visit the modes of the data; modes that only the energy has stay unseen.

Source: Grosse et al. 2015, arXiv:1511.02543, and Grosse et al. 2016, arXiv:1606.02275.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from scorejax.density.annealed_importance import (
    Annealed,
    annealed_importance,
    importance_normalizer,
    make_hamiltonian_transition,
)
from scorejax.density.annealing_path import Path
from scorejax.typing import PyTree

NUM_ERRORS = 2.0


class Sandwich(NamedTuple):
    """Bounds of log Z in nats, with their standard errors and effective sizes.

    `gap` is upper - lower. `met` says that log Z is known to `tolerance`: |gap| and two standard
    errors of it are no more than that together.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    lower_error: Float[Array, ""]
    upper_error: Float[Array, ""]
    lower_effective_size: Float[Array, ""]
    upper_effective_size: Float[Array, ""]
    gap: Float[Array, ""]
    met: Array
    tolerance: Float[Array, ""]


class Interval(NamedTuple):
    """Ends of a confidence interval of log Z, in nats."""

    low: Float[Array, ""]
    high: Float[Array, ""]


def sandwich(
    log_weights: Float[Array, "n"],
    back_log_weights: Float[Array, "m"],
    *,
    tolerance: float = 0.2,
) -> Sandwich:
    """Bounds of log Z from the log-weights of independent walks along a path and back.

    Standard errors are those of the delta method; an effective size below about a hundred makes
    them too small. `tolerance` is in nats; one bit/dim of D dimensions is D log 2 of them.
    Raises: ValueError unless tolerance > 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance needs to be positive, in nats; got {tolerance}.")
    there, back = importance_normalizer(log_weights), importance_normalizer(back_log_weights)
    gap = -back.log_z - there.log_z
    error = jnp.hypot(there.standard_error, back.standard_error)
    return Sandwich(
        lower=there.log_z,
        upper=-back.log_z,
        lower_error=there.standard_error,
        upper_error=back.standard_error,
        lower_effective_size=there.effective_size,
        upper_effective_size=back.effective_size,
        gap=gap,
        met=jnp.abs(gap) + NUM_ERRORS * error <= tolerance,
        tolerance=jnp.asarray(tolerance, gap.dtype),
    )


def confidence_interval(bounds: Sandwich, *, level: float = 0.95) -> Interval:
    """An interval that holds log Z with probability `level` at least, if the starts are exact.

    No other assumption enters, about mixing or about the number of walks: by Markov's inequality
    each end fails with probability (1 - level) / 2 at most, at a distance of log(2 / (1 - level))
    from its bound. Its low end holds alone, whatever the starts of the walks back.
    Raises: ValueError unless 0 < level < 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level needs to lie between 0 and 1; got {level}.")
    margin = math.log(2 / (1 - level))
    return Interval(bounds.lower - margin, bounds.upper + margin)


def verdict(bounds: Sandwich) -> str:
    """One sentence on how far the bounds of log Z are to be trusted."""
    lower, upper, gap, tolerance = (
        float(value) for value in (bounds.lower, bounds.upper, bounds.gap, bounds.tolerance)
    )
    error = math.hypot(bounds.lower_error, bounds.upper_error)
    sizes = f"{float(bounds.lower_effective_size):.0f} and {float(bounds.upper_effective_size):.0f}"
    span = f"The bounds {lower:.2f} and {upper:.2f} nats of log Z"
    if not math.isfinite(gap):
        return f"log Z is not known: its bounds are {lower} and {upper} nats."
    if bounds.met:
        return f"{span} meet within {tolerance:g}, if the starts of the walks back are exact."
    if gap < -tolerance and gap < -NUM_ERRORS * error:
        return (
            f"{span} are upside down: the starts of the walks back are not draws of the density, "
            "and only the lower bound holds."
        )
    if gap > tolerance:
        return (
            f"{span} do not meet, at effective sizes {sizes}: the truth may be anywhere between. "
            "Take more temperatures or longer transitions."
        )
    return (
        f"{span} have a standard error of {error:.2f}, at effective sizes {sizes}: too few walks, "
        f"or too few temperatures, for {tolerance:g} nats."
    )


def walk(
    rngs: Key[Array, "b"],
    path: Path,
    x: Float[Array, "b *d"],
    *,
    step_sizes: Float[Array, "positions"],
    num_steps: int = 1,
    jitter: float = 0.0,
    chunk: int | None = None,
) -> Annealed:
    """`annealed_importance` by MALA, or Hamiltonian Monte Carlo, `chunk` walks at a time.

    A walk depends on its own key alone: chunks and devices change nothing but the rounding.
    Raises: ValueError unless `chunk` divides the number of walks, and as
    `make_hamiltonian_transition`.
    """
    transition = make_hamiltonian_transition(step_sizes, num_steps=num_steps, jitter=jitter)
    run = lambda rngs, x: annealed_importance(rngs, path, x, transition=transition)
    log_weights, ends, acceptance = by_chunks(run, (rngs, x), chunk)
    return Annealed(log_weights.reshape(-1), ends.reshape(x.shape), acceptance.mean(axis=0))


def by_chunks(run: Callable[..., PyTree], rows: tuple[Array, ...], chunk: int | None) -> PyTree:
    """run(*rows) of `chunk` rows at a time, or of all: its results, stacked on a new first axis.

    Raises: ValueError unless `chunk` divides the number of rows.
    """
    num = len(rows[0])
    if chunk is None:
        return jax.tree.map(lambda result: result[None], run(*rows))
    if chunk < 1 or num % chunk:
        raise ValueError(f"chunk needs to divide {num} walks; got {chunk}.")
    cut = tuple(array.reshape(-1, chunk, *array.shape[1:]) for array in rows)
    return jax.lax.map(lambda rows: run(*rows), cut)


def bidirectional_normalizer(
    rngs: Key[Array, "n"],
    back_rngs: Key[Array, "m"],
    path: Path,
    base_draws: Float[Array, "n *d"],
    target_draws: Float[Array, "m *d"],
    *,
    step_sizes: Float[Array, "positions"],
    num_steps: int = 1,
    jitter: float = 0.0,
    chunk: int | None = None,
    tolerance: float = 0.2,
) -> Sandwich:
    """Bounds of log Z by walks from draws of p_0 along a path, and from draws of p_k back.

    `step_sizes` come from `tuned_step_sizes`, on draws of p_0 other than these. The transitions are
    reversible, so the walks back run the same chain of kernels backwards. By default they are those
    of MALA, which for the same number of gradient calls does better in many temperatures than
    leapfrogs of several steps in few; those need a jitter (docs/density.md has numbers).

    Raises: ValueError as `walk` and `sandwich`.
    """
    options = {"num_steps": num_steps, "jitter": jitter, "chunk": chunk}
    there = walk(rngs, path, base_draws, step_sizes=step_sizes, **options)
    back = walk(back_rngs, path.reversed(), target_draws, step_sizes=step_sizes[::-1], **options)
    return sandwich(there.log_weights, back.log_weights, tolerance=tolerance)
