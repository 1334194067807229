# SPDX-License-Identifier: Apache-2.0
"""Largest Euclidean distance between two points of a data set: the exact value, or bounds.

NCSNv2 uses it as the highest noise level (arXiv:2006.09011, technique 1).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class DistanceEstimate(NamedTuple):
    """Bounds of the largest distance: `lower` is attained by two points, `upper` is certain.

    `quantile` is the 99.9 % quantile of the distances within a subset of the points. A single
    outlier can determine the largest distance; it affects the quantile only if it is in the subset
    and the subset has fewer than 2000 points.
    """

    lower: float
    upper: float
    quantile: float


def farthest(rows: Float[Array, "b d"], points: Float[Array, "n d"]) -> Float[Array, "b"]:
    """Largest distance of each row to any of the points; takes memory for b n numbers.

    Subtract the same centre from rows and points first, to keep precision.
    """
    # |x|^2 + |y|^2 - 2 x.y loses digits only where points are close. It selects the farthest point,
    # whose distance is then computed directly.
    norms = jnp.sum(points**2, axis=1)
    products = jnp.matmul(rows, points.T, precision=jax.lax.Precision.HIGHEST)
    partner = points[jnp.argmax(norms[None] - 2 * products, axis=1)]
    return jnp.sqrt(jnp.sum((rows - partner) ** 2, axis=1))


def max_pairwise_distance(x: Float[np.ndarray, "n *d"], *, block_size: int = 1024) -> float:
    """Largest distance between two rows, exact up to rounding, `block_size` rows at a time.

    Takes device memory for the points and block_size n distances.
    Raises: ValueError if there are fewer than two points, a value is not finite or block_size < 1.
    """
    if not block_size >= 1:
        raise ValueError(f"max_pairwise_distance needs block_size >= 1; got {block_size}.")
    points = jnp.asarray(centred(x))
    blocks = (points[start : start + block_size] for start in range(0, len(points), block_size))
    return max(float(jnp.max(_farthest(block, points))) for block in blocks)


def sampled_max_distance(
    rng: PRNGKeyArray, x: Float[np.ndarray, "n *d"], *, num_rows: int = 256, num_steps: int = 100
) -> DistanceEstimate:
    """Bounds of the largest distance, from `num_rows` random rows against all points.

    The lower bound is attained. With probability 1 - a, at most a fraction log(1 / a) / num_rows of
    the points has a larger distance to some other point. The upper bound is certain up to rounding:
    it is the diameter of a ball around all points, shrunk in `num_steps` steps. The quantile is
    over pairs of the random rows. Raises: as `max_pairwise_distance`, and ValueError unless
    num_rows >= 2 and num_steps >= 1.
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
    """Flattened rows minus their mean, as float32. Raises: as `max_pairwise_distance`."""
    rows = np.asarray(x).reshape(len(x), -1)
    if len(rows) < 2:
        raise ValueError(f"the largest distance needs at least 2 points; got {len(rows)}.")
    if not np.isfinite(rows).all():
        raise ValueError("the largest distance needs finite points; got nan or inf.")
    return (rows - rows.mean(axis=0, dtype=np.float64)).astype(np.float32)


_farthest = jax.jit(farthest)


@jax.jit
def _all_distances(rows: Float[Array, "b d"]) -> Float[Array, "b b"]:
    return jax.lax.map(lambda row: jnp.sqrt(jnp.sum((rows - row[None]) ** 2, axis=1)), rows)


@functools.partial(jax.jit, static_argnums=1)
def _enclosing_radius(points: Float[Array, "n d"], num_steps: int) -> Float[Array, ""]:
    """Radius of a ball that holds all points; each step moves its centre to the farthest one."""
    distances = lambda centre: jnp.sqrt(jnp.sum((points - centre[None]) ** 2, axis=1))

    def towards_farthest(centre: Array, step: Array) -> tuple[Array, Array]:
        away = distances(centre)
        return centre + (points[jnp.argmax(away)] - centre) / (step + 2), jnp.max(away)

    start = jnp.zeros(points.shape[1], points.dtype)
    centre, radii = jax.lax.scan(towards_farthest, start, jnp.arange(num_steps, dtype=start.dtype))
    return jnp.minimum(jnp.min(radii), jnp.max(distances(centre)))
