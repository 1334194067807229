# SPDX-License-Identifier: Apache-2.0
"""Long chains of Langevin dynamics or Hamiltonian Monte Carlo, recorded at a few of their steps.

    "none":  x <- x + s^2 / 2 score(x) + s z    (s: step_size)
    "mala":  the same proposal, accepted or rejected
    "hmc":   a leapfrog of num_leapfrog steps of length s, accepted or rejected

A chain that is not corrected has another stationary law: for a Gaussian of precision l its variance
is 1 / (l (1 - s^2 l / 4)), and it diverges if s^2 l >= 4.

Source: Neal 2011, arXiv:1206.1901; Gao et al. 2021, arXiv:2012.08125, Section 4.3, for long chains.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scorejax.choices import require_known
from scorejax.random import Rng, fold_in, split
from scorejax.samplers.hamiltonian import (
    Evaluate,
    LogProb,
    Point,
    StepSize,
    adapted,
    hamiltonian_move,
    make_evaluate,
    propose,
)

ADJUSTMENTS = ("none", "mala", "hmc")
TARGET_ACCEPTANCE = {"mala": 0.574, "hmc": 0.651}
"""Acceptance at which a chain moves fastest in many dimensions: Roberts & Rosenthal 1998; Beskos et
al. 2013."""


class Trace(NamedTuple):
    """States x of chains after `steps` steps, their energies and acceptance.

    `energy` is -log p in nats, up to its constant. `acceptance` is the mean acceptance probability
    since the record before; of chains that are not corrected, what MALA would accept.
    """

    steps: Int[Array, "r"]
    energy: Float[Array, "r b"]
    acceptance: Float[Array, "r b"]
    x: Float[Array, "r b *d"]


class Adapted(NamedTuple):
    """A step size, the states it was adapted on, and the mean acceptance of the second half."""

    step_size: Float[Array, ""]
    x: Float[Array, "b *d"]
    acceptance: Float[Array, ""]


def log_spaced_steps(num_steps: int, *, per_decade: int = 1) -> Int[np.ndarray, "r"]:
    """Numbers of steps 1 .. num_steps, about per_decade of them in each power of ten.

    Raises: ValueError unless num_steps >= 1 and per_decade >= 1.
    """
    if num_steps < 1 or per_decade < 1:
        raise ValueError(
            f"records need num_steps >= 1 and per_decade >= 1; got {num_steps} and {per_decade}."
        )
    exponents = np.arange(int(np.log10(num_steps) * per_decade + 1e-9) + 1) / per_decade
    steps = np.rint(10**exponents).astype(int)
    return np.unique(np.append(steps, num_steps))


def long_run(
    rng: Rng,
    log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    adjust: str,
    step_size: StepSize,
    record_at: Int[np.ndarray, "r"],
    num_leapfrog: int = 5,
) -> Trace:
    """Runs each chain from x for record_at[-1] steps, and keeps its state at the steps record_at.

    The records do not change the chain. With keys (b,) each chain draws from its own key. Makes a
    gradient call for each step, or num_leapfrog of them with "hmc". Memory is that of the records.

    Raises: ValueError for an unknown `adjust`, or unless record_at rises from 1 or more.
    """
    record_at = np.asarray(record_at)
    if not (len(record_at) and record_at[0] >= 1 and np.all(np.diff(record_at) > 0)):
        raise ValueError(f"record_at needs to rise from 1 or more; got {record_at.tolist()}.")
    num_leapfrog = check_adjustment(adjust, num_leapfrog)
    evaluate = make_evaluate(log_prob)

    def move(rng: Rng, point: Point) -> tuple[Point, Array]:
        if adjust == "none":
            return _uncorrected_move(rng, evaluate, point, step_size=step_size)
        options = {"step_size": step_size, "num_steps": num_leapfrog}
        return hamiltonian_move(rng, evaluate, point, **options)

    def to_record(state: tuple[Array, Point], stop: Array) -> tuple[tuple, tuple]:
        first, point = state

        def step(k: Array, state: tuple[Point, Array]) -> tuple[Point, Array]:
            point, accepted = state
            point, acceptance = move(fold_in(rng, k), point)
            # A running mean: a sum of 10^5 terms would be rounded in single precision.
            return point, accepted + (acceptance - accepted) / (k - first + 1)

        start = point, jnp.zeros_like(point.log_prob)
        point, acceptance = jax.lax.fori_loop(first, stop, step, start)
        return (stop, point), (-point.log_prob, acceptance, point.x)

    start = jnp.zeros((), int), evaluate(x)
    records = jax.lax.scan(to_record, start, jnp.asarray(record_at, int))[1]
    return Trace(jnp.asarray(record_at), *records)


def check_adjustment(adjust: str, num_leapfrog: int) -> int:
    """The number of leapfrog steps of a transition: one unless `adjust` is "hmc".

    Raises: ValueError for an unknown `adjust`, or num_leapfrog < 1.
    """
    require_known("adjustment", adjust, ADJUSTMENTS)
    if num_leapfrog < 1:
        raise ValueError(f"num_leapfrog needs to be at least 1; got {num_leapfrog}.")
    return num_leapfrog if adjust == "hmc" else 1


def _uncorrected_move(
    rng: Rng, evaluate: Evaluate, point: Point, *, step_size: StepSize
) -> tuple[Point, Array]:
    # The same draws as those of a corrected move: what differs is the decision alone.
    momentum_rng, _ = split(rng)
    return propose(momentum_rng, evaluate, point, step_size=step_size, num_steps=1)


def adapted_step_size(
    rng: PRNGKeyArray,
    log_prob: LogProb,
    x: Float[Array, "b *d"],
    *,
    adjust: str,
    num_warm_up: int = 100,
    first: float = 0.1,
    target: float | None = None,
    num_leapfrog: int = 5,
) -> Adapted:
    """The step size at which chains from x have about the `target` mean acceptance.

    The gain falls as k^-0.6, and the step size is the geometric mean of those of the second half of
    num_warm_up transitions (Robbins & Monro, averaged as Polyak & Juditsky do). The states
    returned are those of an adapted chain: take them as a start, not as draws. By default `target`
    is .574 for "mala" and .651 for "hmc".

    Raises: ValueError for adjust="none", which accepts everything, and as `check_adjustment`;
    unless num_warm_up >= 2.
    """
    num_leapfrog = check_adjustment(adjust, num_leapfrog)
    require_known("adjustment with an acceptance", adjust, TARGET_ACCEPTANCE)
    if num_warm_up < 2:
        raise ValueError(f"num_warm_up needs to be at least 2; got {num_warm_up}.")
    target = TARGET_ACCEPTANCE[adjust] if target is None else target
    evaluate = make_evaluate(log_prob)

    def step(state: tuple[Point, Array], inputs: tuple) -> tuple[tuple, tuple]:
        (point, size), (key, gain) = state, inputs
        options = {"step_size": size, "num_steps": num_leapfrog}
        point, acceptance = hamiltonian_move(key, evaluate, point, **options)
        new_size = adapted(size, acceptance, target=target, gain=gain)
        return (point, new_size), (size, jnp.mean(acceptance))

    start = evaluate(x), jnp.asarray(first, x.dtype)
    gains = jnp.asarray((1.0 + np.arange(num_warm_up)) ** -0.6, x.dtype)
    inputs = jax.random.split(rng, num_warm_up), gains
    (point, _), (sizes, acceptance) = jax.lax.scan(step, start, inputs)
    half = num_warm_up // 2
    size = jnp.exp(jnp.mean(jnp.log(sizes[half:])))
    return Adapted(size, point.x, jnp.mean(acceptance[half:]))
