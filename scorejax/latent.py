# SPDX-License-Identifier: Apache-2.0
"""The latent space of the probability flow: every example has one latent, the same for every model.

Latents are noise, so that what lies between two of them is found on the sphere, not on the line.
Drawing latents of a lower `temperature` gives samples closer to what is likely.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and Appendix D.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.numerics import norm_except_batch
from scorejax.samplers.probability_flow import decode, encode
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape

NEARLY_PARALLEL = 1e-3
"""Radians, below which the sphere between two latents is a line."""


def slerp(
    start: Float[Array, "b *d"], end: Float[Array, "b *d"], share: Float[Array, "k"]
) -> Float[Array, "k b *d"]:
    """Spherical interpolation from start (share 0) to end (share 1), of each example.

    sin((1 - u) w) / sin(w) start + sin(u w) / sin(w) end, where w is the angle between them.
    Source: Shoemake 1985, doi:10.1145/325334.325242.
    """
    axes = tuple(range(1, start.ndim))
    inner = jnp.sum(start * end, axis=axes)
    cosine = inner / (norm_except_batch(start) * norm_except_batch(end))
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = angle < NEARLY_PARALLEL
    safe = jnp.where(straight, 1.0, angle)

    def weight(u: Array) -> Array:
        return jnp.where(straight, u, jnp.sin(u * safe) / jnp.sin(safe))

    def between(u: Array) -> Array:
        first, second = (w.reshape(-1, *(1 for _ in axes)) for w in (weight(1 - u), weight(u)))
        return first * start + second * end

    return jax.vmap(between)(share)


def interpolate(
    score_fn: ScoreFn,
    start: Float[Array, "b *d"],
    end: Float[Array, "b *d"],
    num: int,
    *,
    sde: SDE,
    **solver: Any,
) -> Float[Array, "k b *d"]:
    """num examples on the way from start to end: both are encoded, and what lies between decoded.

    The first and the last are start and end again, to the solver's tolerance. `solver` is what
    `encode` and `decode` take: rtol, atol, t_min, max_steps.
    Raises: ValueError for num < 2.
    """
    if num < 2:
        raise ValueError(f"interpolate needs num of at least 2, both ends; got {num}.")
    latents = (encode(score_fn, x, sde=sde, **solver).x for x in (start, end))
    path = slerp(*latents, jnp.linspace(0, 1, num))
    flat = path.reshape(-1, *start.shape[1:])
    return decode(score_fn, flat, sde=sde, **solver).x.reshape(path.shape)


def tempered(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    temperature: float,
    **solver: Any,
) -> Sampled:
    """Draws samples from latents of `temperature` times the prior's standard deviation."""
    z = temperature * sde.sample_prior(rng, shape)
    return decode(score_fn, z, sde=sde, **solver)
