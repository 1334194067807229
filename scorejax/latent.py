# SPDX-License-Identifier: Apache-2.0
"""The latent space of the probability flow, in which every example has one latent.

All exact models of the same data and SDE agree on that latent. Latents are Gaussian noise, so that
interpolation follows the sphere, not the line. Latents of a lower `temperature` give more likely
samples.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and Appendix D.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import norm_except_batch
from scorejax.random import Rng
from scorejax.samplers.probability_flow import decode, encode
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape

NEARLY_PARALLEL = 1e-3
"""Angle in radians below which two latents are interpolated on the line."""


def slerp(
    start: Float[Array, "b *d"], end: Float[Array, "b *d"], share: Float[Array, "k"]
) -> Float[Array, "k b *d"]:
    """Interpolates on the sphere from start (share 0) to end (share 1), each example by itself.

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
    """Encodes start and end, interpolates `num` latents between them, and decodes these.

    The first and the last example are start and end, to the solver's tolerance. `solver` holds
    further arguments of `encode` and `decode`: rtol, atol, t_min, max_steps.
    Raises: ValueError if num < 2.
    """
    if num < 2:
        raise ValueError(f"interpolate needs num >= 2, for both ends; got {num}.")
    latents = (encode(score_fn, x, sde=sde, **solver).x for x in (start, end))
    path = slerp(*latents, jnp.linspace(0, 1, num))
    flat = path.reshape(-1, *start.shape[1:])
    return decode(score_fn, flat, sde=sde, **solver).x.reshape(path.shape)


def tempered(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    temperature: float,
    **solver: Any,
) -> Sampled:
    """Draws samples from latents of `temperature` times the prior's standard deviation.

    With keys (b,) each row draws from its own key.
    """
    z = temperature * sde.sample_prior(rng, shape)
    return decode(score_fn, z, sde=sde, **solver)
