# SPDX-License-Identifier: Apache-2.0
"""Correctors: Langevin moves at a fixed time t, which pull x towards p_t.

A corrector is a function (rng, sde, score_fn, x, t, *, snr, num_inner, num_steps) -> Move that
makes num_inner moves x + e score + sqrt(2 e) z with fresh noise z, each row's from its own key if
there are several; snr, the wanted ratio of signal to noise, sets e. Moves shrink with the factor
`alpha` of the discrete chain of num_steps steps.

Source: Song et al. 2021, arXiv:2011.13456, Appendix G, Alg. 4 and 5.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import unknown
from scorejax.numerics import expand, norm_except_batch
from scorejax.random import Rng, normal, split
from scorejax.samplers.predictors import Move, Times, X
from scorejax.sdes import SDE, DiscreteChain
from scorejax.typing import ScoreFn


@runtime_checkable
class Corrector(Protocol):
    """The signature that all correctors share."""

    def __call__(
        self,
        rng: Rng,
        sde: SDE,
        score_fn: ScoreFn,
        x: X,
        t: Times,
        *,
        snr: float | Array,
        num_inner: int,
        num_steps: int,
    ) -> Move: ...


def alpha(sde: SDE, t: Times, num_steps: int) -> Float[Array, "b"]:
    """Square of the scale of the chain's step that ends at t: 1 for VE, 1 - beta_i for VP.

    It is 1, the limit for many steps, if the SDE has no discrete chain. With one, the number of
    steps must be enough for the chain, whatever the predictor.
    """
    if not isinstance(sde, DiscreteChain):
        return jnp.ones_like(t)
    return sde.transition(t, num_steps)[0] ** 2


def langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr |z| / |score|)^2, norms of each example by itself."""
    score = score_fn(x, t)
    ratio = _ratio(norm_except_batch(z), norm_except_batch(score))
    return _move(x, score, z, 2 * alpha(sde, t, num_steps) * (snr * ratio) ** 2)


def batch_langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr mean|z| / mean|score|)^2, means over the batch.

    A row then depends on the other rows of its batch, and so on more than its own key.
    """
    score = score_fn(x, t)
    ratio = _ratio(jnp.mean(norm_except_batch(z)), jnp.mean(norm_except_batch(score)))
    return _move(x, score, z, 2 * alpha(sde, t, num_steps) * (snr * ratio) ** 2)


def annealed_langevin_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, *, snr: float | Array, num_steps: int
) -> tuple[X, X]:
    """One Langevin move with e = 2 alpha (snr std(t))^2, which does not depend on the score."""
    std = sde.marginal(t)[1]
    size = 2 * alpha(sde, t, num_steps) * (snr * std) ** 2
    return _move(x, score_fn(x, t), z, size)


def langevin(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves whose size follows the norm of each example's score.

    In many dimensions they inflate the variance of p_t by a factor 1 + alpha snr^2. In few
    dimensions 1 / |score| has heavy tails and the error is far larger (twice the variance in three
    dimensions at snr 0.1): use annealed_langevin for toy data.
    """
    step = lambda x, z: langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def batch_langevin(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves whose size follows norms averaged over the batch, as in the published code.

    This is the one corrector that couples the rows of a batch: a row depends on the other rows on
    its device, so that the number of devices and the size of a chunk change what is drawn.
    """
    step = lambda x, z: batch_langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def annealed_langevin(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Langevin moves of a size proportional to the noise level, as in NCSN."""
    step = lambda x, z: annealed_langevin_step(sde, score_fn, x, t, z, snr=snr, num_steps=num_steps)
    return _repeat(step, rng, x, num_inner)


def no_corrector(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, *,
    snr: float | Array, num_inner: int, num_steps: int,
) -> Move:  # fmt: skip
    """Returns x unchanged, for sampling by the predictor alone."""
    return Move(x, x, nfe=0)


CORRECTORS: Mapping[str, Corrector] = {
    "langevin": langevin,
    "batch_langevin": batch_langevin,
    "annealed_langevin": annealed_langevin,
    "none": no_corrector,
}


def get_corrector(name: str) -> Corrector:
    """The corrector of that name. Raises: ValueError if the name is unknown; it lists all names."""
    if name not in CORRECTORS:
        raise unknown("corrector", name, CORRECTORS)
    return CORRECTORS[name]


def _ratio(noise_norm: Array, score_norm: Array) -> Array:
    """|z| / |score|, but 0 where the score vanishes, so that x stays where it is."""
    positive = score_norm > 0
    return jnp.where(positive, noise_norm / jnp.where(positive, score_norm, 1.0), 0.0)


def _move(x: X, score: X, z: X, size: Float[Array, "b"]) -> tuple[X, X]:
    x_mean = x + expand(size, x) * score
    return x_mean + expand(jnp.sqrt(2 * size), x) * z, x_mean


def _repeat(step: Callable[[X, X], tuple[X, X]], rng: Rng, x: X, num_inner: int) -> Move:
    def body(state, key):
        return step(state[0], normal(key, x.shape, x.dtype)), None

    (x, x_mean), _ = jax.lax.scan(body, (x, x), split(rng, num_inner))
    return Move(x, x_mean, num_inner)
