# SPDX-License-Identifier: Apache-2.0
"""Random directions for sliced objectives, and checks of their data and steps.

Every family of directions has E[u u^T] = I / D with D the number of coordinates of one example,
counted over all axes but the first. Sphere and Rademacher directions have length exactly 1;
Gaussian ones have length 1 in the mean square. For a symmetric matrix H the variance of D u^T H u
is, with F = sum_ij H_ij^2,

    gaussian 2 F;  sphere 2 (D F - tr(H)^2) / (D + 2);  rademacher 2 sum_{i != j} H_ij^2.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.numerics import expand, sum_except_batch
from scorejax.random import Rng, draw_rows, normal, split
from scorejax.typing import Shape

Direction = Callable[[Rng, Shape, jnp.dtype], Float[Array, "b *d"]]
"""(rng, shape, dtype) -> directions of that shape with E[u u^T] = I / D."""

AnyArray = Array | np.ndarray
Step = float | Float[Array, ""] | Float[Array, "b"]
"""A length or a noise level: one for all examples, or one for each."""


def gaussian(rng: Rng, shape: Shape, dtype=jnp.float32) -> Float[Array, "b *d"]:
    """Directions N(0, I / D)."""
    return normal(rng, shape, dtype) / math.sqrt(math.prod(shape[1:]))


def rademacher(rng: Rng, shape: Shape, dtype=jnp.float32) -> Float[Array, "b *d"]:
    """Directions whose coordinates are 1 / sqrt(D) with random signs."""
    signs = draw_rows(functools.partial(jax.random.rademacher, dtype=dtype), rng, shape)
    return signs / math.sqrt(math.prod(shape[1:]))


def sphere(rng: Rng, shape: Shape, dtype=jnp.float32) -> Float[Array, "b *d"]:
    """Directions uniform on the unit sphere of all coordinates of an example."""
    noise = normal(rng, shape, dtype)
    return noise / expand(jnp.sqrt(sum_except_batch(noise**2)), noise)


DIRECTIONS: dict[str, Direction] = {
    "gaussian": gaussian,
    "rademacher": rademacher,
    "sphere": sphere,
}


def draw_directions(
    direction: Direction, rng: Rng, x: Float[Array, "b *d"], num: int
) -> Float[Array, "n b *d"]:
    """`num` independent directions for each row of x. Raises: ValueError unless num >= 1."""
    if num < 1:
        raise ValueError(f"num_directions needs at least 1; got {num}.")
    return jax.vmap(lambda key: direction(key, x.shape, x.dtype))(split(rng, num))


def check_directions(u: AnyArray, x: Float[AnyArray, "b *d"]) -> None:
    """Raises: ValueError unless u has a direction of non-zero length for each row of real data x.

    Lengths are checked outside jit only.
    """
    check_floating(x)
    if u.shape[-x.ndim :] != x.shape:
        raise ValueError(f"directions need the shape of x, {x.shape}, last; got {u.shape}.")
    if not isinstance(u, jax.core.Tracer):
        length = np.sqrt(np.sum(np.square(np.asarray(u)), axis=tuple(range(1 - x.ndim, 0))))
        if not np.all((length > 0) & np.isfinite(length)):
            raise ValueError(
                "directions need lengths that are finite and not zero; got lengths from "
                f"{length.min()} to {length.max()}. Draw them with `directions.sphere`."
            )


def check_eps(eps: Step, x: Float[AnyArray, "b *d"]) -> None:
    """Raises: ValueError unless eps is positive and moves x by more than the rounding of x.

    The largest value of a traced x is taken to be 1; a traced eps is not checked.
    """
    if isinstance(eps, jax.core.Tracer):
        return
    least, most = float(np.min(np.asarray(eps))), float(np.max(np.asarray(eps)))
    if not (least > 0 and most < math.inf):
        got = f"{least}" if least == most else f"values from {least} to {most}"
        raise ValueError(f"eps needs to be positive and finite; got {got}.")
    largest = 1.0 if isinstance(x, jax.core.Tracer) else np.max(np.abs(np.asarray(x)))
    dim = math.prod(x.shape[1:])
    floor = math.sqrt(dim) * float(jnp.finfo(x.dtype).eps) * largest
    if least <= floor:
        raise ValueError(
            f"eps needs more than {floor:.1e}, the rounding of {dim} coordinates up to "
            f"{largest:.3g} in {x.dtype}; got {least}. `suggest_eps` gives a good one."
        )


def check_step(eps: Step, u: AnyArray, x: Float[AnyArray, "b *d"]) -> None:
    """Raises: ValueError as `check_directions` and `check_eps`."""
    check_directions(u, x)
    check_eps(eps, x)


def check_floating(x: AnyArray) -> None:
    """Raises: ValueError unless x is of floating point."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"score matching needs floating-point data; got {x.dtype}. Cast it, and add noise if "
            "its values are discrete."
        )


def real_data(x: Array) -> Float[Array, "b *d"]:
    """x in float32 or better, so that steps and differences are not taken in half precision.

    Raises: ValueError as `check_floating`.
    """
    x = jnp.asarray(x)
    check_floating(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
