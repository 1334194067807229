# SPDX-License-Identifier: Apache-2.0
"""The best step of a finite difference.

A shorter step leaves mostly the rounding of the energy, a longer one differs from the derivative.
For FD-SSM, with N the standard deviation of the rounding of one energy,

    rounding ~ sqrt(6) N / eps^2,   truncation ~ eps^2 (d_4 / 12 + d_1 d_3 / 6),

and the two are equal at the best eps. `suggest_eps` estimates it from the scale of the data;
`difference_error` measures both errors. N is measured from differences of high order over steps so
small that only rounding is left: More and Wild 2011, doi:10.1137/100786125.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from scorejax.energies import Energy
from scorejax.objectives.directions import Direction, draw_directions, real_data, sphere
from scorejax.objectives.finite_difference import directional_derivative
from scorejax.random import Rng, split


def suggest_eps(
    dim: int, *, scale: float = 1.0, dtype: DTypeLike = jnp.float32, order: int = 2
) -> float:
    """The length of step for data of `dim` coordinates with standard deviation `scale`.

    Each coordinate moves by scale * u^(1 / (order + 2)), u the dtype's distance from 1 to the next
    number: 0.019 of the scale for second differences in float32, 1.2e-4 in float64, 0.3 in
    bfloat16. That is the best step, to a factor near 1, for an energy of about one unit per
    coordinate. `order` is that of the highest difference: 2 for FD-SSM, 1 for FD-DSM. `dtype` is
    the least precise type in the energy's computation: bfloat16 if its products have operands of
    that type, even if they are accumulated, and differences taken, in float32.
    Raises: ValueError unless dim >= 1, order >= 1, scale is positive and finite, and dtype is of
    floating point.
    """
    if dim < 1 or not 0 < scale < math.inf or order < 1:
        raise ValueError(
            "suggest_eps needs dim >= 1, a finite scale > 0 and order >= 1; got "
            f"dim={dim}, scale={scale}, order={order}."
        )
    return scale * math.sqrt(dim) * _unit(dtype) ** (1 / (order + 2))


def suggest_score_eps(dim: int, *, scale: float = 1.0, dtype: DTypeLike = jnp.float32) -> float:
    """The length of step for FD-SSM-VR and FD-SSM of a score network, first differences of it.

    It is half of `suggest_eps` for first differences: measured, not derived. Nine fields of 8 to
    256 coordinates, in float32 and float64, had their best steps at 0.35 to 2.4 times this length.
    """
    return suggest_eps(dim, scale=scale, dtype=dtype, order=1) / 2


class DifferenceError(NamedTuple):
    """Root-mean-square errors of FD-SSM over a batch, and the step at which they would be equal."""

    truncation: Float[Array, ""]
    rounding: Float[Array, ""]
    best_eps: Float[Array, ""]


def difference_error(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: float,
    direction: Direction = sphere,
    dtype: DTypeLike | None = None,
) -> DifferenceError:
    """Estimates the errors of FD-SSM of this energy on this batch by rounding and by truncation.

    `dtype` is as in `suggest_eps`, by default that of x. Costs about twenty evaluations of the
    energy on the batch. best_eps is at most the distance between two points of the data; that is
    what a quadratic energy gets, for which any step is right.
    """
    x = real_data(x)
    direction_rng, noise_rng = split(rng)
    u = draw_directions(direction, direction_rng, x, 1)[0]
    scale = jnp.sqrt(jnp.mean(jnp.var(x, axis=0)))
    reach = scale * math.sqrt(math.prod(x.shape[1:]))
    dtype = dtype or x.dtype

    def derivative(order: int) -> Float[Array, "b"]:
        step = jnp.where(reach > 0, reach, 1.0) * _unit(dtype) ** (1 / (order + 2))
        return directional_derivative(energy, x, u, order=order, eps=step)

    first, third, fourth = derivative(1), derivative(3), derivative(4)
    # With the energy's sign: l = -energy, so that d_4 changes sign and d_1 d_3 does not.
    truncation = eps**2 * _rms(first * third / 6 - fourth / 12)
    noise = energy_rounding(energy, noise_rng, x, dtype)
    rounding = noise * _rms(jnp.sqrt(6 + (eps * first) ** 2 / 2)) / eps**2
    balanced = eps * (rounding / jnp.maximum(truncation, jnp.finfo(x.dtype).tiny)) ** 0.25
    return DifferenceError(truncation, rounding, jnp.minimum(balanced, math.sqrt(2) * reach))


def energy_rounding(
    energy: Energy, rng: Rng, x: Float[Array, "b *d"], dtype: DTypeLike | None = None
) -> Float[Array, ""]:
    """Standard deviation of the rounding of an energy near the data.

    It is measured by sixth differences over steps of 4 roundings of the largest coordinate. Those
    of the energy itself vanish; those of independent errors have 12! / (6!)^2 times their variance.
    """
    x, order = real_data(x), 6
    step = 4 * _unit(dtype or x.dtype) * jnp.max(jnp.abs(x))
    u = draw_directions(sphere, rng, x, 1)[0] * math.sqrt(math.prod(x.shape[1:]))
    points = jnp.stack([x + k * step * u for k in range(order + 1)])
    values = jax.lax.map(energy, points)
    differences = jnp.diff(values, n=order, axis=0)
    return _rms(differences) / math.sqrt(math.comb(2 * order, order))


def _unit(dtype: DTypeLike) -> float:
    """The distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps)


def _rms(values: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(values**2))
