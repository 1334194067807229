# SPDX-License-Identifier: Apache-2.0
"""Bregman divergences of user-given convex functions: automatic gradient, inverse by bisection.

NumPy arrays are computed on the CPU in double precision, whether or not JAX has x64 enabled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import roots_jacobi

from scorejax.bregman.divergences.divergence import Divergence
from scorejax.bregman.divergences.domain import Interval
from scorejax.bregman.divergences.generators import namespace
from scorejax.bregman.divergences.named import DIVERGENCES

ElementwiseJax = Callable[[Array], Array]
BISECTIONS = 100
"""Halvings of the interval of exponents; double precision is exhausted after 64."""


def from_convex(
    phi: ElementwiseJax,
    *,
    points: Interval = Interval(),  # noqa: B008  (an immutable tuple)
    queries: Interval | None = None,
    gradient: ElementwiseJax | None = None,
    inverse_gradient: ElementwiseJax | None = None,
    name: str = "custom",
) -> Divergence:
    """The divergence of a strictly convex, twice differentiable phi written in jax.numpy.

    All functions act on each entry of an array. `points` is where phi is finite, `queries` where
    its slope is finite too (by default the open interval). A missing `gradient` comes from
    `jax.grad`, a missing `inverse_gradient` from bisection. Where x is close to y the divergence is
    computed as an integral of phi'', not as a difference.
    Raises: ValueError if phi is not elementwise, if it is not convex at ten numbers inside, or if
    the name is that of a divergence of the library, which an index on disk would take it for.
    """
    if name in DIVERGENCES:
        raise ValueError(f"name needs to be one of your own; {name!r} is a divergence already.")
    ten = jax.ShapeDtypeStruct((10,), jnp.float32)
    if getattr(jax.eval_shape(phi, ten), "shape", None) != ten.shape:
        raise ValueError(f"{name}: phi needs to act on each entry of an array, one for one.")
    queries = queries or points._replace(closed_lower=False, closed_upper=False)
    slope = gradient or _derivative(phi)
    inverse = inverse_gradient or _make_inverse(slope, queries)
    divergence = Divergence(
        name,
        phi=_in_kind(phi),
        gradient=_in_kind(slope),
        inverse_gradient=_in_kind(inverse),
        pointwise=_in_kind(_make_pointwise(phi, slope)),
        points=points,
        queries=queries,
    )
    _check_convex(divergence, _make_chart(queries))
    return divergence


def _derivative(function: ElementwiseJax) -> ElementwiseJax:
    return jax.grad(lambda x: jnp.sum(function(x)))


def _make_pointwise(phi: ElementwiseJax, slope: ElementwiseJax) -> Callable[[Array, Array], Array]:
    """Makes d_phi(x, y) = phi(x) - phi(y) - phi'(y) (x - y), without cancellation.

    d_phi is also (x - y)^2 times the integral of (1 - s) phi''(y + s (x - y)) over s in [0, 1]. The
    integral is used where two Gauss-Jacobi rules agree to within the rounding of the difference.
    """
    curvature = _derivative(slope)

    def integral(x: Array, y: Array, num_nodes: int) -> Array:
        nodes, weights = roots_jacobi(num_nodes, 1, 0)
        terms = zip((1 + nodes) / 2, weights / 4, strict=True)
        return (x - y) ** 2 * sum(w * curvature(y + s * (x - y)) for s, w in terms)

    def pointwise(x: Array, y: Array) -> Array:
        parts = phi(x), phi(y), slope(y) * (x - y)
        rounding = jnp.finfo(parts[0].dtype).eps * sum(jnp.abs(part) for part in parts)
        fine, coarse = integral(x, y, 9), integral(x, y, 5)
        close = jnp.abs(fine - coarse) < rounding
        value = jnp.maximum(jnp.where(close, fine, parts[0] - parts[1] - parts[2]), 0)
        return jnp.where(x == y, 0, value)  # also where phi overflows

    return pointwise


def _make_inverse(slope: ElementwiseJax, domain: Interval) -> ElementwiseJax:
    """Makes the inverse of an increasing slope over the domain."""
    chart = _make_chart(domain)

    def inverse(target: Float[Array, "..."]) -> Float[Array, "..."]:
        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            below = slope(chart(middle)) < target
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        largest = jnp.full_like(target, np.log(float(jnp.finfo(target.dtype).max)) - 1)
        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-largest, largest))
        return chart((low + high) / 2)

    return inverse


def _make_chart(domain: Interval) -> ElementwiseJax:
    """Makes an increasing map of the real line onto the interval, exponential towards its ends."""
    lower, upper = domain.lower, domain.upper
    if np.isfinite(lower) and np.isfinite(upper):
        return lambda z: lower + (upper - lower) * jax.nn.sigmoid(z)
    if np.isfinite(lower):
        return lambda z: lower + jnp.exp(z)
    return (lambda z: upper - jnp.exp(-z)) if np.isfinite(upper) else jnp.sinh


def _in_kind(function: Callable[..., Array]) -> Callable:
    """Makes a function that runs on JAX arrays as it is, and on NumPy arrays in float64."""
    compiled = jax.jit(function)

    def call(*arrays: np.ndarray | Array) -> np.ndarray | Array:
        if namespace(*arrays) is jnp:
            return function(*arrays)
        arrays = np.broadcast_arrays(*(np.asarray(array, np.float64) for array in arrays))
        shape, size = arrays[0].shape, arrays[0].size
        if not size:
            return np.zeros(shape)
        # Padded to powers of two, so that only a few sizes are compiled.
        padding = (1 << (size - 1).bit_length()) - size
        flat = [np.pad(array.ravel(), (0, padding), mode="edge") for array in arrays]
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(compiled(*flat))[:size].reshape(shape)

    return call


def _check_convex(divergence: Divergence, chart: ElementwiseJax) -> None:
    x = np.asarray(chart(jnp.linspace(-2.0, 2.0, 10)), np.float64)
    value, slopes = divergence.phi(x), divergence.gradient(x)
    if not (np.isfinite(value).all() and (np.diff(slopes) > 0).all()):
        raise ValueError(
            f"{divergence.name}: phi needs to be finite and strictly convex for numbers "
            f"{divergence.queries}; at {x.round(3).tolist()} its slopes are "
            f"{slopes.round(3).tolist()}."
        )
