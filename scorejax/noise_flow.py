# SPDX-License-Identifier: Apache-2.0
"""The probability flow of univariate densities along their noise level.

p_sigma is a density convolved with N(0, sigma^2). Values that move as

    du / d log sigma = -sigma^2 s(u, sigma)

carry their probability from level to level, in order: mass below u at one level is mass below its
image at another. A density at a small level so takes the weights of its modes from the large level,
where they overlap. The score at the small level alone says nothing of these weights.

Source: Song et al. 2021, arXiv:2011.13456, Eq. 13, for the variance-exploding SDE.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.typing import HeadFn, NoisyHeadFn

NUM_STEPS = 32
CALLS_PER_STEP = 4


def at_sigma(head: NoisyHeadFn, sigma: float) -> HeadFn:
    """The head at one noise level."""
    return lambda u, c: head(u, c, jnp.asarray(sigma, u.dtype))


def transport(
    head: NoisyHeadFn,
    c: Float[Array, "*m h"],
    u: Float[Array, "*n"],
    *,
    start: float,
    end: float,
    num_steps: int = NUM_STEPS,
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """The images at noise `end` of values at noise `start`, and log |d image / du|.

    Takes `num_steps` steps of the classical Runge-Kutta method in log sigma.
    """
    step = math.log(end / start) / num_steps

    def slope(u: Array, t: Array) -> tuple[Array, Array]:
        sigma = jnp.exp(t)
        return jax.jvp(lambda u: -(sigma**2) * head(u, c, sigma), (u,), (jnp.ones_like(u),))

    def move(point: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
        u, log_slope = point
        k1, d1 = slope(u, t)
        k2, d2 = slope(u + step / 2 * k1, t + step / 2)
        k3, d3 = slope(u + step / 2 * k2, t + step / 2)
        k4, d4 = slope(u + step * k3, t + step)
        u = u + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (u, log_slope + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    levels = math.log(start) + step * jnp.arange(num_steps, dtype=u.dtype)
    (u, log_slope), _ = jax.lax.scan(move, (u, jnp.zeros_like(u)), levels)
    return u, log_slope
