# SPDX-License-Identifier: Apache-2.0
"""The largest Euclidean distance between two points of a data set: exact, or between bounds.

NCSNv2 takes it for the highest noise level (arXiv:2006.09011, technique 1).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class DistanceEstimate(NamedTuple):
    """The largest distance lies between `lower`, which two points have, and `upper`.

    `quantile` is the distance that 99.9 % of the pairs of a sample do not exceed. A single outlier
    may set the largest one; this it raises only if the sample has it and less than 2000 others.
    """

    lower: float
    upper: float
    quantile: float


def farthest(rows: Float[Array, "b d"], points: Float[Array, "n d"]) -> Float[Array, "b"]:
    """Largest distance of each row to any of the points; memory for b n numbers.

    Both should be centred about the same place.
    """
    # |x|^2 + |y|^2 - 2 x.y loses digits where points are close, but those are not looked for: it
    # only finds the farthest, whose distance is then taken directly.
    norms = jnp.sum(points**2, axis=1)
    products = jnp.matmul(rows, points.T, precision=jax.lax.Precision.HIGHEST)
    partner = points[jnp.argmax(norms[None] - 2 * products, axis=1)]
    return jnp.sqrt(jnp.sum((rows - partner) ** 2, axis=1))


def max_pairwise_distance(x: Float[np.ndarray, "n *d"], *, block_size: int = 1024) -> float:
    """The largest distance between two rows, exact up to rounding, `block_size` rows at a time.

    Memory on the device for the points and block_size n distances. Raises: ValueError for less than
    two points, or numbers that are not finite.
    """
    if not block_size >= 1:
        raise ValueError(f"max_pairwise_distance needs block_size >= 1; got {block_size}.")
    points = jnp.asarray(centred(x))
    blocks = (points[start : start + block_size] for start in range(0, len(points), block_size))
    return max(float(jnp.max(_farthest(block, points))) for block in blocks)


def sampled_max_distance(
    rng: PRNGKeyArray, x: Float[np.ndarray, "n *d"], *, num_rows: int = 256, num_steps: int = 100
) -> DistanceEstimate:
    """Bounds of the largest distance from `num_rows` rows, each against all points.

    The lower bound is attained, and the quantile is that of the pairs of those rows. With
    probability 1 - a, at most a share log(1 / a) / num_rows of all points has a larger distance to
    some other. The upper bound is sure, up to rounding: the diameter of a ball that holds all
    points, made small in num_steps. Raises: as `max_pairwise_distance`.
    Source of the ball: Badoiu & Clarkson 2003, Smaller core-sets for balls.
    """
    if not (num_rows >= 2 and num_steps >= 1):
        raise ValueError(
            "sampled_max_distance needs num_rows >= 2 and num_steps >= 1; got "
            f"num_rows={num_rows}, num_steps={num_steps}."
        )
    points = jnp.asarray(centred(x))
    chosen = jax.random.choice(rng, len(points), (min(num_rows, len(points)),), replace=False)
    rows = points[chosen]
    lower = float(jnp.max(_farthest(rows, points)))
    upper = max(2 * float(_enclosing_radius(points, num_steps)), lower)
    pairs = np.asarray(_all_distances(rows))[np.triu_indices(len(rows), 1)]
    return DistanceEstimate(lower, upper, float(np.quantile(pairs, 0.999)))


def centred(x: Float[np.ndarray, "n *d"]) -> Float[np.ndarray, "n d"]:
    """Rows about their mean, in single precision. Raises: as `max_pairwise_distance`."""
    rows = np.asarray(x).reshape(len(x), -1)
    if len(rows) < 2:
        raise ValueError(f"a largest distance needs at least 2 points; got {len(rows)}.")
    if not np.isfinite(rows).all():
        raise ValueError("a largest distance needs finite points; some are not.")
    return (rows - rows.mean(axis=0, dtype=np.float64)).astype(np.float32)


_farthest = jax.jit(farthest)


@jax.jit
def _all_distances(rows: Float[Array, "b d"]) -> Float[Array, "b b"]:
    return jax.lax.map(lambda row: jnp.sqrt(jnp.sum((rows - row[None]) ** 2, axis=1)), rows)


@functools.partial(jax.jit, static_argnums=1)
def _enclosing_radius(points: Float[Array, "n d"], num_steps: int) -> Float[Array, ""]:
    distance = lambda centre: jnp.sqrt(jnp.sum((points - centre[None]) ** 2, axis=1))

    def towards_farthest(centre: Array, step: Array) -> tuple[Array, Array]:
        away = distance(centre)
        return centre + (points[jnp.argmax(away)] - centre) / (step + 2), jnp.max(away)

    start = jnp.zeros(points.shape[1], points.dtype)
    centre, radii = jax.lax.scan(towards_farthest, start, jnp.arange(num_steps, dtype=start.dtype))
    return jnp.minimum(jnp.min(radii), jnp.max(distance(centre)))
