# SPDX-License-Identifier: Apache-2.0
"""Elementwise functions of the named divergences, for NumPy and JAX arrays alike.

For each divergence: the convex phi, its gradient and inverse, and the stable form of d_phi(x, y).
Nearly all stable forms use one function, gap(t) = t - log(1 + t), which is t^2 / 2 at small t:
Itakura-Saito is gap(x / y - 1), KL is x gap(y / x - 1), exponential is exp(y) gap(exp(x - y) - 1).
x - y of two close numbers is exact in floating point, so these keep their relative precision.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

NEAR = 0.3
"""Largest |t| for `small_gap`: its series then leaves out less than 1e-17 of the first term."""


def namespace(*arrays: Any) -> ModuleType:
    """jax.numpy if any of the arrays is a JAX array, else numpy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def quiet(function: Callable) -> Callable:
    """Silences NumPy: the unused branch of a `where` may overflow, and log 0 is intended."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args)

    return wrapped


@quiet
def gap(t: ArrayLike) -> ArrayLike:
    """t - log(1 + t) with full relative precision."""
    xp = namespace(t)
    near = xp.abs(t) < NEAR
    return xp.where(near, small_gap(xp.where(near, t, 0)), t - xp.log1p(t))


def small_gap(t: ArrayLike) -> ArrayLike:
    """t - log(1 + t) for |t| < NEAR, from r = t / (2 + t).

    log(1 + t) = 2 atanh(r), whose series begins with 2 r, and t - 2 r = r t: nothing cancels.
    """
    r = t / (2 + t)
    square = r * r
    series = square * (1 / 25)
    for odd in range(23, 3, -2):
        series += 1 / odd
        series *= square
    return r * t - 2 * r * square * (series + 1 / 3)


def square(x: ArrayLike) -> ArrayLike:
    """x^2."""
    return x * x


def double(x: ArrayLike) -> ArrayLike:
    """2 x, the gradient of x^2."""
    return 2 * x


def half(x: ArrayLike) -> ArrayLike:
    """x / 2, the inverse of `double`."""
    return x / 2


@quiet
def squared_difference(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """(x - y)^2."""
    return (x - y) ** 2


@quiet
def exp(x: ArrayLike) -> ArrayLike:
    """exp(x)."""
    return namespace(x).exp(x)


@quiet
def log(x: ArrayLike) -> ArrayLike:
    """log x."""
    return namespace(x).log(x)


@quiet
def minus_log(x: ArrayLike) -> ArrayLike:
    """-log x."""
    return -namespace(x).log(x)


@quiet
def minus_reciprocal(x: ArrayLike) -> ArrayLike:
    """-1 / x, the gradient of -log x, and its own inverse."""
    return -1 / x


@quiet
def negative_entropy(x: ArrayLike) -> ArrayLike:
    """x log x - x."""
    return _xlogy(x, x) - x


@quiet
def negative_binary_entropy(x: ArrayLike) -> ArrayLike:
    """x log x + (1 - x) log(1 - x)."""
    return _xlogy(x, x) + _xlogy(1 - x, 1 - x)


@quiet
def logit(x: ArrayLike) -> ArrayLike:
    """log(x / (1 - x))."""
    xp = namespace(x)
    return xp.log(x) - xp.log1p(-x)


@quiet
def sigmoid(x: ArrayLike) -> ArrayLike:
    """1 / (1 + exp(-x)), without overflow."""
    xp = namespace(x)
    small = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1 / (1 + small), small / (1 + small))


@quiet
def itakura_saito(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """x / y - log(x / y) - 1."""
    xp = namespace(x, y)
    t = (x - y) / y
    near, far = xp.abs(t) < NEAR, x / y - 1 - _log_ratio(x, y)
    return xp.maximum(_gap_where(near, t, 1.0, far), 0)


@quiet
def exponential(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """exp(x) - exp(y) - exp(y) (x - y)."""
    xp = namespace(x, y)
    t = x - y
    excess = xp.expm1(t)
    near, far = xp.abs(excess) < NEAR, xp.exp(x) - xp.exp(y) * (1 + t)
    return xp.maximum(_gap_where(near, excess, xp.exp(y), far), 0)


def generalized_kl(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """x log(x / y) - x + y, which is y at x = 0."""
    return _kl(x, y, x - y)


def binary_kl(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """KL divergence of Bernoulli distributions with probabilities x and y."""
    # Both terms are positive. The exact difference is passed, since 1 - x and 1 - y are rounded.
    return _kl(x, y, x - y) + _kl(1 - x, 1 - y, y - x)


@quiet
def power(b: float, x: ArrayLike) -> ArrayLike:
    """x^b / (b (b - 1))."""
    return x**b / (b * (b - 1))


@quiet
def power_gradient(b: float, x: ArrayLike) -> ArrayLike:
    """x^(b - 1) / (b - 1)."""
    return x ** (b - 1) / (b - 1)


@quiet
def power_inverse_gradient(b: float, slope: ArrayLike) -> ArrayLike:
    """The x at which `power_gradient` equals `slope`."""
    return ((b - 1) * slope) ** (1 / (b - 1))


@quiet
def beta(b: float, x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """(x^b + (b - 1) y^b - b x y^(b - 1)) / (b (b - 1))."""
    xp = namespace(x, y)
    t = (x - y) / y
    is_near = xp.abs(t) < NEAR
    # With r = x / y: r^b - 1 - b (r - 1) = gap(r^b - 1) - b gap(r - 1).
    small = xp.where(is_near, t, 0)
    near = y**b * (gap(xp.expm1(b * xp.log1p(small))) - b * small_gap(small))
    far = x**b + (b - 1) * y**b - b * x * y ** (b - 1)
    value = xp.maximum(xp.where(is_near, near, far) / (b * (b - 1)), 0)
    return xp.where(x == y, 0, value)  # also where the powers overflow


@quiet
def conjugate(phi: Callable, inverse_gradient: Callable, slope: ArrayLike) -> ArrayLike:
    """phi*(s) = s x - phi(x), where x is the point at which phi has slope s."""
    x = inverse_gradient(slope)
    # At x = 0 the slope may be infinite (0 log 0); s x tends to zero there.
    return namespace(slope).where(x == 0, 0.0, slope * x) - phi(x)


def dual_pointwise(
    pointwise: Callable, inverse_gradient: Callable, slope: ArrayLike, other: ArrayLike
) -> ArrayLike:
    """d_phi*(s, t) = d_phi(x(t), x(s))."""
    return pointwise(inverse_gradient(other), inverse_gradient(slope))


def whiten(root: np.ndarray, x: ArrayLike) -> ArrayLike:
    """L' x of each row x; `root` is the matrix L (d, d), or its diagonal (d,)."""
    return x @ root if root.ndim == 2 else x * root.reshape((1,) * (np.ndim(x) - 1) + (-1,))


def shift(smoothing: float, x: ArrayLike) -> ArrayLike:
    """x + smoothing."""
    return x + smoothing


def normalize(smoothing: float, x: ArrayLike) -> ArrayLike:
    """Rows divided by their sums, after `smoothing` is added to every entry."""
    smooth = x + smoothing
    return smooth / namespace(x).sum(smooth, axis=-1, keepdims=True)


@quiet
def _kl(x: ArrayLike, y: ArrayLike, difference: ArrayLike) -> ArrayLike:
    """x log(x / y) - difference, for difference = x - y, which the caller may know more exactly."""
    xp = namespace(x, y)
    t = -difference / x
    near, far = xp.abs(t) < NEAR, xp.where(x == 0, 0.0, x * _log_ratio(x, y)) - difference
    return xp.maximum(_gap_where(near, t, x, far), 0)


def _gap_where(near: ArrayLike, t: ArrayLike, scale: ArrayLike, far: ArrayLike) -> ArrayLike:
    """scale * small_gap(t) where `near`, else `far`."""
    if isinstance(far, jax.Array):
        return jnp.where(near, scale * small_gap(jnp.where(near, t, 0)), far)
    # The series is most of the work, so NumPy computes it only where it is needed.
    values = np.array(far)
    values[near] = np.broadcast_to(scale, values.shape)[near] * small_gap(t[near])
    return values[()]


def _log_ratio(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """log(x / y), also where the ratio leaves the range of normal numbers."""
    xp = namespace(x, y)
    ratio = x / y
    normal = (ratio > xp.finfo(ratio.dtype).tiny) & (ratio < np.inf)
    if xp is np and normal.all():
        return np.log(ratio)
    return xp.where(normal, xp.log(ratio), xp.log(x) - xp.log(y))


def _xlogy(x: ArrayLike, y: ArrayLike) -> ArrayLike:
    """x log y, zero at x = 0."""
    xp = namespace(x, y)
    return xp.where(x == 0, 0.0, x * xp.log(y))
