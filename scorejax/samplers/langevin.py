# SPDX-License-Identifier: Apache-2.0
"""Annealed Langevin dynamics: Langevin moves at each noise level of a ladder, from high to low.

    x <- x + alpha_i score(x, sigma_i) + sqrt(2 alpha_i) z,
    alpha_i = step_size (sigma_i / sigma_L)^2

The score is a function of (x (b, *d), sigma (b,)). Every chain is a scan over levels and steps that
carries x alone. Step sizes in proportion to sigma^2 keep the ratio of signal to noise the same at
all levels; below 2 sigma_L^2 they are stable, about 0.06 sigma_L^2 is usual. With keys (b,) each
row draws its start and its noise from its own key.

Source: Song & Ermon 2020, arXiv:2006.09011, Algorithm 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.linear_operators import LinearOperator
from scorejax.numerics import norm_except_batch
from scorejax.random import Rng, draw_rows, normal, split
from scorejax.schedules import Table, langevin_step_sizes
from scorejax.typing import Sampled, ScoreFn, Shape

X = Float[Array, "b *d"]
Scalar = Float[Array, ""]


class Level(NamedTuple):
    """A noise level of the ladder: its index (0 is the noisiest), its sigma and its step size."""

    index: Array
    sigma: Array
    alpha: Array


class Trace(NamedTuple):
    """Averages (levels,) over the batch, at the last step of each level.

    score_norm is sigma |score| / sqrt(d), about 1 if x has the noise of the level; snr is the ratio
    of signal to noise in a move, sqrt(alpha / 2) |score| / |z|; x_norm is |x| / sqrt(d).
    """

    sigma: Array
    score_norm: Array
    snr: Array
    x_norm: Array


def langevin_step(score: X, x: X, alpha: Scalar, z: X) -> X:
    """One Langevin move of size alpha with the noise z."""
    return x + alpha * score + jnp.sqrt(2 * alpha) * z


def annealed_langevin(
    rng: Rng, score_fn: ScoreFn, shape: Shape, *, sigmas: Table, step_size: float,
    steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Draws samples by `steps_per_level` moves at each level of the descending `sigmas`.

    Starts from x_init, or by default from N(0, sigma_1^2 I). `denoise` adds sigma_L^2 score at the
    end, which removes the noise that is left (Tweedie's formula) for one more evaluation.

    Raises: ValueError if steps_per_level < 1, and as `require_stable`.
    """
    start_rng, chain_rng = split(rng)
    x = _start(start_rng, shape, sigmas, x_init)

    def move(x: X, level: Level, key: Rng) -> tuple[X, None]:
        return _langevin_move(score_fn, x, level, key), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    return _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)


def annealed_langevin_frames(
    rng: Rng, score_fn: ScoreFn, shape: Shape, *, num_frames: int, sigmas: Table,
    step_size: float, steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Float[Array, "frames b *d"]:  # fmt: skip
    """Keeps num_frames states of the chain of `annealed_langevin`: evenly over levels, and its end.

    Raises: ValueError unless num_frames lies in 2 .. levels + 1, and as `annealed_langevin`.
    """
    if not 2 <= num_frames <= len(sigmas) + 1:
        raise ValueError(f"num_frames must lie in 2 .. {len(sigmas) + 1}; got {num_frames}.")
    start_rng, chain_rng = split(rng)
    x = _start(start_rng, shape, sigmas, x_init)
    frame_of_level = jnp.asarray(np.arange(len(sigmas)) * (num_frames - 1) // len(sigmas))

    # Every move writes to its frame and the last one stays: memory for num_frames states only.
    def move(state: tuple[X, Array], level: Level, key: Rng):
        x, frames = state
        x = _langevin_move(score_fn, x, level, key)
        return (x, frames.at[frame_of_level[level.index]].set(x)), None

    frames = jnp.zeros((num_frames, *x.shape), x.dtype)
    (x, frames), _ = _descend(move, chain_rng, (x, frames), sigmas, step_size, steps_per_level)
    return frames.at[-1].set(_finish(score_fn, x, sigmas, steps_per_level, denoise=denoise).x)


def annealed_langevin_trace(
    rng: Rng, score_fn: ScoreFn, shape: Shape, *, sigmas: Table, step_size: float,
    steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> tuple[Sampled, Trace]:  # fmt: skip
    """Draws the samples of `annealed_langevin` and records norms at each level, for tuning."""
    start_rng, chain_rng = split(rng)
    x = _start(start_rng, shape, sigmas, x_init)
    root_dim = math.sqrt(math.prod(shape[1:]))

    def move(x: X, level: Level, key: Rng) -> tuple[X, Trace]:
        score, z = _score(score_fn, x, level.sigma), normal(key, x.shape, x.dtype)
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
    rng: Rng, score_fn: ScoreFn, shape: Shape, *, operator: LinearOperator,
    y: Float[Array, "b *m"], sigmas: Table, step_size: float, steps_per_level: int,
    denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Draws samples x with operator.forward(x) = y: inpainting if the operator is a mask.

    Before each move the measured part of x becomes a copy of y with the noise of the level, and at
    the end y itself. Like `inverse.sample_given` this does not draw from the exact conditional law.
    Source: the code published with arXiv:2006.09011; the last replacement is ours.
    """
    start_rng, chain_rng = split(rng)
    x = _start(start_rng, shape, sigmas, x_init)

    def move(x: X, level: Level, key: Rng) -> tuple[X, None]:
        measured_rng, move_rng = split(key)
        z = normal(measured_rng, x.shape, x.dtype)
        x = impose(operator, y, x, level.sigma, z)
        return _langevin_move(score_fn, x, level, move_rng), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    x, nfe = _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)
    return Sampled(impose(operator, y, x, jnp.zeros((), x.dtype), jnp.zeros_like(x)), nfe)


def interpolate(
    rng: Rng, score_fn: ScoreFn, shape: Shape, num: int, *, sigmas: Table,
    step_size: float, steps_per_level: int, denoise: bool = True, x_init: X | None = None,
) -> Sampled:  # fmt: skip
    """Draws rows of `num` samples that change gradually: x (b, num, *d) for shape (b, *d).

    A row has one start and two streams of noise, which its samples mix at angles from 0 to pi / 2.
    Raises: ValueError if num < 2, and as `annealed_langevin`.
    Source: the code published with arXiv:2006.09011.
    """
    if num < 2:
        raise ValueError(f"interpolate needs num >= 2; got {num}.")
    start_rng, chain_rng = split(rng)
    x = jnp.repeat(_start(start_rng, shape, sigmas, x_init), num, axis=0)
    pair = lambda key, shape: jax.random.normal(key, (2, *shape), x.dtype)

    def move(x: Float[Array, "n *d"], level: Level, key: Rng) -> tuple[Array, None]:
        first, second = draw_rows(pair, key, shape, axis=1)
        z = mixed_noise(first, second, num)
        return langevin_step(_score(score_fn, x, level.sigma), x, level.alpha, z), None

    x, _ = _descend(move, chain_rng, x, sigmas, step_size, steps_per_level)
    x, nfe = _finish(score_fn, x, sigmas, steps_per_level, denoise=denoise)
    return Sampled(x.reshape(shape[0], num, *shape[1:]), nfe)


def impose(operator: LinearOperator, y: Float[Array, "b *m"], x: X, sigma: Scalar, z: X) -> X:
    """x with its measured part replaced by y plus the measured part of the noise sigma z."""
    return x - operator.project(x) + operator.pinv(y) + sigma * operator.project(z)


def mixed_noise(first: X, second: X, num: int) -> Float[Array, "n *d"]:
    """cos(u) first + sin(u) second for `num` angles u from 0 to pi / 2: white noise, n = b num."""
    angles = np.linspace(0, np.pi / 2, num).reshape(1, num, *[1] * (first.ndim - 1))
    cosine, sine = (
        jnp.asarray(np.cos(angles), first.dtype),
        jnp.asarray(np.sin(angles), first.dtype),
    )
    return (cosine * first[:, None] + sine * second[:, None]).reshape(-1, *first.shape[1:])


def require_stable(sigmas: Table, step_size: float) -> None:
    """Raises: ValueError unless the levels decrease and 0 < step_size < 2 sigma_L^2."""
    langevin_step_sizes(sigmas, step_size)
    if not step_size < 2 * sigmas[-1] ** 2:
        raise ValueError(
            f"annealed Langevin dynamics needs step_size < 2 sigma_L^2 = {2 * sigmas[-1] ** 2:g}, "
            f"or it diverges; got {step_size:g}."
        )


def _start(rng: Rng, shape: Shape, sigmas: Table, x_init: X | None) -> X:
    return sigmas[0] * normal(rng, shape) if x_init is None else x_init


def _score(score_fn: ScoreFn, x: X, sigma: Scalar) -> X:
    return score_fn(x, jnp.full(x.shape[:1], sigma, x.dtype))


def _langevin_move(score_fn: ScoreFn, x: X, level: Level, key: Rng) -> X:
    z = normal(key, x.shape, x.dtype)
    return langevin_step(_score(score_fn, x, level.sigma), x, level.alpha, z)


def _descend(
    move: Callable[[Any, Level, Rng], tuple[Any, Any]], rng: Rng, state: Any,
    sigmas: Table, step_size: float, steps_per_level: int,
) -> tuple[Any, Any]:  # fmt: skip
    """The state after all moves, and the reports of the last move of each level, stacked."""
    require_stable(sigmas, step_size)
    if steps_per_level < 1:
        raise ValueError(f"steps_per_level must be at least 1; got {steps_per_level}.")
    dtype = jax.tree.leaves(state)[0].dtype
    tables = sigmas, langevin_step_sizes(sigmas, step_size)
    levels = Level(jnp.arange(len(sigmas)), *(jnp.asarray(table, dtype) for table in tables))

    def at_level(state: Any, inputs: tuple[Level, Rng]) -> tuple[Any, Any]:
        level, key = inputs
        keys = split(key, steps_per_level)
        state, reports = jax.lax.scan(lambda state, key: move(state, level, key), state, keys)
        return state, jax.tree.map(lambda report: report[-1], reports)

    return jax.lax.scan(at_level, state, (levels, split(rng, len(sigmas))))


def _finish(
    score_fn: ScoreFn, x: X, sigmas: Table, steps_per_level: int, *, denoise: bool
) -> Sampled:
    nfe = len(sigmas) * steps_per_level + int(denoise)
    if denoise:
        last = jnp.asarray(sigmas[-1], x.dtype)
        x = x + last**2 * _score(score_fn, x, last)
    return Sampled(x, nfe)
