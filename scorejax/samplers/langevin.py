# SPDX-License-Identifier: Apache-2.0
"""Annealed Langevin dynamics: Langevin moves at each noise level of a ladder, from high to low.

    x <- x + alpha_i score(x, sigma_i) + sqrt(2 alpha_i) z,
    alpha_i = step_size (sigma_i / sigma_L)^2

The score is a function of (x (b, *d), sigma (b,)). All chains are one scan over levels and steps,
which carries the points alone; step sizes that follow sigma^2 keep the ratio of signal to noise the
same at all levels. Step sizes up to 2 sigma_L^2 are stable, about 0.06 sigma_L^2 is usual.

Source: Song & Ermon 2020, arXiv:2006.09011, Algorithm 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.linear_operators import LinearOperator
from scorejax.numerics import norm_except_batch
from scorejax.schedules import Table, langevin_step_sizes
from scorejax.typing import Sampled, ScoreFn, Shape

X = Float[Array, "b *d"]
Scalar = Float[Array, ""]


class Level(NamedTuple):
    """A rung of the ladder: its number from the noisiest on, its noise and its step size."""

    index: Array
    sigma: Array
    alpha: Array


class Trace(NamedTuple):
    """Averages (levels,) over the samples, at the last step of each level.

    score_norm is sigma |score| / sqrt(d), 1 where x is as noisy as the level says; snr is the ratio
    of signal to noise in a move, sqrt(alpha / 2) |score| / |z|; x_norm is |x| / sqrt(d).
    """

    sigma: Array
    score_norm: Array
    snr: Array
    x_norm: Array


def langevin_step(score: X, x: X, alpha: Scalar, z: X) -> X:
    """One move of size alpha with the noise z."""
    return x + alpha * score + jnp.sqrt(2 * alpha) * z


def annealed_langevin(
    rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, sigmas: Table, step_size: float,
    steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Samples by `steps_per_level` moves at each level of the descending `sigmas`.

    Starts from N(0, sigma_1^2 I), or from x_init. `denoise` adds sigma_L^2 score at the end, which
    takes out what noise is left (Tweedie's formula) for one more evaluation.

    Raises: ValueError as `require_stable`, and for less than one step per level.
    """
    start_rng, chain_rng = jax.random.split(rng)
    x = _start(start_rng, shape, sigmas, x_init)

    def move(x: X, level: Level, key: PRNGKeyArray) -> tuple[X, None]:
        return _langevin_move(score_fn, x, level, key), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    return _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)


def annealed_langevin_frames(
    rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, num_frames: int, sigmas: Table,
    step_size: float, steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Float[Array, "frames b *d"]:  # fmt: skip
    """States of the chain of `annealed_langevin`, evenly spread over its levels, and its end.

    Raises: ValueError unless num_frames lies in 2 .. levels + 1, and as `annealed_langevin`.
    """
    if not 2 <= num_frames <= len(sigmas) + 1:
        raise ValueError(f"num_frames must lie in 2 .. {len(sigmas) + 1}; got {num_frames}.")
    start_rng, chain_rng = jax.random.split(rng)
    x = _start(start_rng, shape, sigmas, x_init)
    frame_of_level = jnp.asarray(np.arange(len(sigmas)) * (num_frames - 1) // len(sigmas))

    # Every move writes to its frame and the last one stays: memory for num_frames states only.
    def move(state: tuple[X, Array], level: Level, key: PRNGKeyArray):
        x, frames = state
        x = _langevin_move(score_fn, x, level, key)
        return (x, frames.at[frame_of_level[level.index]].set(x)), None

    frames = jnp.zeros((num_frames, *x.shape), x.dtype)
    (x, frames), _ = _descend(move, chain_rng, (x, frames), sigmas, step_size, steps_per_level)
    return frames.at[-1].set(_finish(score_fn, x, sigmas, steps_per_level, denoise=denoise).x)


def annealed_langevin_trace(
    rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, sigmas: Table, step_size: float,
    steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> tuple[Sampled, Trace]:  # fmt: skip
    """The samples of `annealed_langevin`, and norms along the way for those who tune."""
    start_rng, chain_rng = jax.random.split(rng)
    x = _start(start_rng, shape, sigmas, x_init)
    root_dim = math.sqrt(math.prod(shape[1:]))

    def move(x: X, level: Level, key: PRNGKeyArray) -> tuple[X, Trace]:
        score, z = _score(score_fn, x, level.sigma), jax.random.normal(key, x.shape, x.dtype)
        size, noise = norm_except_batch(score), norm_except_batch(z)
        x = langevin_step(score, x, level.alpha, z)
        return x, Trace(
            level.sigma,
            level.sigma * jnp.mean(size) / root_dim,
            jnp.sqrt(level.alpha / 2) * jnp.mean(size / noise),
            jnp.mean(norm_except_batch(x)) / root_dim,
        )

    x, trace = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    return _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise), trace


def sample_given(
    rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, operator: LinearOperator,
    y: Float[Array, "b *m"], sigmas: Table, step_size: float, steps_per_level: int,
    denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Samples that agree with measurements y = operator.forward(x); of a mask, inpaintings.

    Before each move what is measured becomes a copy of y with the level's noise, and at the end y
    itself. As `inverse.sample_given` this is no draw from the exact conditional law.
    Source: the code published with arXiv:2006.09011; the last replacement is ours.
    """
    start_rng, chain_rng = jax.random.split(rng)
    x = _start(start_rng, shape, sigmas, x_init)

    def move(x: X, level: Level, key: PRNGKeyArray) -> tuple[X, None]:
        known_rng, move_rng = jax.random.split(key)
        z = jax.random.normal(known_rng, x.shape, x.dtype)
        x = impose(operator, y, x, level.sigma, z)
        return _langevin_move(score_fn, x, level, move_rng), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    x, nfe = _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)
    return Sampled(impose(operator, y, x, jnp.zeros((), x.dtype), jnp.zeros_like(x)), nfe)


def interpolate(
    rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, num: int, *, sigmas: Table,
    step_size: float, steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Rows of `num` samples, each like its neighbours: x (b, num, *d) for shape (b, *d).

    A row has one start and two streams of noise, which its samples mix from the one to the other.
    Raises: ValueError for num < 2, and as `annealed_langevin`.
    Source: the code published with arXiv:2006.09011.
    """
    if num < 2:
        raise ValueError(f"interpolate needs num >= 2; got {num}.")
    start_rng, chain_rng = jax.random.split(rng)
    x = jnp.repeat(_start(start_rng, shape, sigmas, x_init), num, axis=0)

    def move(x: X, level: Level, key: PRNGKeyArray) -> tuple[X, None]:
        first, second = jax.random.normal(key, (2, *shape), x.dtype)
        z = mixed_noise(first, second, num)
        return langevin_step(_score(score_fn, x, level.sigma), x, level.alpha, z), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    x, nfe = _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)
    return Sampled(x.reshape(shape[0], num, *shape[1:]), nfe)


def impose(operator: LinearOperator, y: Float[Array, "b *m"], x: X, sigma: Scalar, z: X) -> X:
    """x with what is measured replaced by y and the noise sigma z."""
    return x - operator.project(x) + operator.pinv(y) + sigma * operator.project(z)


def mixed_noise(first: X, second: X, num: int) -> Float[Array, "n *d"]:
    """cos(u) first + sin(u) second for u from 0 to pi / 2: `num` white noises a row, n = b num."""
    angles = np.linspace(0, np.pi / 2, num).reshape(1, num, *[1] * (first.ndim - 1))
    cosine, sine = (
        jnp.asarray(np.cos(angles), first.dtype),
        jnp.asarray(np.sin(angles), first.dtype),
    )
    return (cosine * first[:, None] + sine * second[:, None]).reshape(-1, *first.shape[1:])


def require_stable(sigmas: Table, step_size: float) -> None:
    """Raises ValueError unless the levels decrease and the step size is positive and stable."""
    langevin_step_sizes(sigmas, step_size)
    if not step_size < 2 * sigmas[-1] ** 2:
        raise ValueError(
            f"annealed Langevin dynamics needs step_size < 2 sigma_L^2 = {2 * sigmas[-1] ** 2:g}, "
            f"or it diverges; got {step_size:g}."
        )


def _start(rng: PRNGKeyArray, shape: Shape, sigmas: Table, x_init: X | None) -> X:
    return sigmas[0] * jax.random.normal(rng, shape) if x_init is None else x_init


def _score(score_fn: ScoreFn, x: X, sigma: Scalar) -> X:
    return score_fn(x, jnp.full(x.shape[:1], sigma, x.dtype))


def _langevin_move(score_fn: ScoreFn, x: X, level: Level, key: PRNGKeyArray) -> X:
    z = jax.random.normal(key, x.shape, x.dtype)
    return langevin_step(_score(score_fn, x, level.sigma), x, level.alpha, z)


def _descend(
    move: Callable[[Any, Level, PRNGKeyArray], tuple[Any, Any]], rng: PRNGKeyArray, state: Any,
    sigmas: Table, step_size: float, steps_per_level: int,
) -> tuple[Any, Any]:  # fmt: skip
    """The state after all moves, and what the last move of each level reports, stacked."""
    require_stable(sigmas, step_size)
    if steps_per_level < 1:
        raise ValueError(f"steps_per_level needs to be at least 1; got {steps_per_level}.")
    dtype = jax.tree.leaves(state)[0].dtype
    tables = sigmas, langevin_step_sizes(sigmas, step_size)
    levels = Level(jnp.arange(len(sigmas)), *(jnp.asarray(table, dtype) for table in tables))

    def at_level(state: Any, inputs: tuple[Level, PRNGKeyArray]) -> tuple[Any, Any]:
        level, key = inputs
        keys = jax.random.split(key, steps_per_level)
        state, reports = jax.lax.scan(lambda state, key: move(state, level, key), state, keys)
        return state, jax.tree.map(lambda report: report[-1], reports)

    return jax.lax.scan(at_level, state, (levels, jax.random.split(rng, len(sigmas))))


def _finish(
    score_fn: ScoreFn, x: X, sigmas: Table, steps_per_level: int, *, denoise: bool
) -> Sampled:
    nfe = len(sigmas) * steps_per_level + int(denoise)
    if denoise:
        last = jnp.asarray(sigmas[-1], x.dtype)
        x = x + last**2 * _score(score_fn, x, last)
    return Sampled(x, nfe)
