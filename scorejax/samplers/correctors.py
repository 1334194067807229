# SPDX-License-Identifier: Apache-2.0
"""Correctors: Langevin moves at a fixed time t, which pull x towards p_t.

A corrector is a function (rng, sde, score_fn, x, t, *, snr, num_inner, num_steps) -> Move that
makes num_inner moves x + e score + sqrt(2 e) z with fresh noise z; snr, the wanted ratio of signal
to noise, sets e. num_steps only says which discrete chain alpha is taken from: alpha is the square
of the chain's scale, 1 for VE and 1 - beta_i for VP.

Source: Song et al. 2021, arXiv:2011.13456, Appendix G, Alg. 4 and 5.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import unknown
from scorejax.numerics import expand, norm_except_batch
from scorejax.samplers.predictors import Move, Times, X
from scorejax.sdes import SDE
from scorejax.typing import ScoreFn


@runtime_checkable
class Corrector(Protocol):
    """The signature that all correctors share."""

    def __call__(
        self,
        rng: PRNGKeyArray,
        sde: SDE,
        score_fn: ScoreFn,
        x: X,
        t: Times,
        *,
        snr: float | Array,
        num_inner: int,
        num_steps: int,
    ) -> Move: ...


def langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr |z| / |score|)^2 for each example of its own."""
    score = score_fn(x, t)
    ratio = _ratio(norm_except_batch(z), norm_except_batch(score))
    return _move(x, score, z, 2 * sde.transition(t, num_steps)[0] ** 2 * (snr * ratio) ** 2)


def batch_langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr mean|z| / mean|score|)^2, means over the batch."""
    score = score_fn(x, t)
    ratio = _ratio(jnp.mean(norm_except_batch(z)), jnp.mean(norm_except_batch(score)))
    return _move(x, score, z, 2 * sde.transition(t, num_steps)[0] ** 2 * (snr * ratio) ** 2)


def annealed_langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr std(t))^2, whatever the score."""
    std = sde.marginal(t)[1]
    size = 2 * sde.transition(t, num_steps)[0] ** 2 * (snr * std) ** 2
    return _move(x, score_fn(x, t), z, size)


def langevin(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves whose size follows the norm of each example's own score.

    In many dimensions they inflate the variance of p_t by a factor 1 + alpha snr^2. In a few, 1 /
    |score| has heavy tails and they do far worse (twice the variance in three dimensions at snr
    0.1): take annealed_langevin for toy data.
    """
    step = lambda x, z: langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def batch_langevin(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves whose size follows norms averaged over the batch, as in the published code.

    A row's answer then depends on its batch mates; mapped over devices, on those of its own device.
    """
    step = lambda x, z: batch_langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def annealed_langevin(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves of a size proportional to the noise level, as in NCSN."""
    step = lambda x, z: annealed_langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def no_corrector(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Leaves x alone: sampling by the predictor alone."""
    return Move(x, x, nfe=0)


CORRECTORS: Mapping[str, Corrector] = {
    "langevin": langevin,
    "batch_langevin": batch_langevin,
    "annealed_langevin": annealed_langevin,
    "none": no_corrector,
}


def get_corrector(name: str) -> Corrector:
    """The corrector of that name. Raises: ValueError with the nearest name and all of them."""
    if name not in CORRECTORS:
        raise unknown("corrector", name, CORRECTORS)
    return CORRECTORS[name]


def _ratio(noise_norm: Array, score_norm: Array) -> Array:
    """|z| / |score|, but 0 where the score vanishes: a move without direction is not made."""
    positive = score_norm > 0
    return jnp.where(positive, noise_norm / jnp.where(positive, score_norm, 1.0), 0.0)


def _move(x: X, score: X, z: X, size: Float[Array, "b"]) -> tuple[X, X]:
    x_mean = x + expand(size, x) * score
    return x_mean + expand(jnp.sqrt(2 * size), x) * z, x_mean


def _repeat(step: Callable[[X, X], tuple[X, X]], rng: PRNGKeyArray, x: X, num_inner: int) -> Move:
    def body(state, key):
        return step(state[0], jax.random.normal(key, x.shape, x.dtype)), None

    (x, x_mean), _ = jax.lax.scan(body, (x, x), jax.random.split(rng, num_inner))
    return Move(x, x_mean, num_inner)
