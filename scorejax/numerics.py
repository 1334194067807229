# SPDX-License-Identifier: Apache-2.0
"""Small numerical functions that the mathematics shares."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

MATMUL_PRECISIONS = ("highest", "high", "default")
"""Precisions of float32 matrix products and convolutions, as JAX names them.

"highest" keeps float32. "default" rounds the factors to bfloat16 on TPUs and to TensorFloat-32 on
GPUs; "high" takes three bfloat16 products on TPUs. CPUs always compute in float32.
"""


def expand(values: Shaped[Array, "b"], like: Array) -> Array:
    """Appends axes to per-example values so that they broadcast against `like` (b, *d)."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def sum_except_batch(x: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Sums over every axis but the first."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)


def mean_except_batch(x: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Averages over every axis but the first."""
    return jnp.mean(x.reshape(x.shape[0], -1), axis=-1)


def norm_except_batch(x: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Euclidean norm over every axis but the first; its gradient at zero is zero, not NaN."""
    square = sum_except_batch(x * x)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def log_mean_exp(x: Float[Array, "*a"], axis: int = 0) -> Array:
    """Logarithm of the mean of exp(x) along `axis`, without overflow."""
    return jax.nn.logsumexp(x, axis=axis) - np.log(x.shape[axis])


def log_mass(
    lower: Float[Array, "*n"], upper: Float[Array, "*n"], tiny: Float[Array, "*n"], *, least: float
) -> Float[Array, "*n"]:
    """log(upper - lower) of two distribution functions; `tiny` where their difference is below
    `least`, of which rounding would leave few digits."""
    mass = upper - lower
    # Both branches are finite, so that the gradient of the other one is no NaN.
    return jnp.where(mass > least, jnp.log(jnp.maximum(mass, least)), tiny)


def gaussian_log_prob(z: Float[Array, "b *d"], std: float) -> Float[Array, "b"]:
    """Log-density of N(0, std^2 I) at z, in nats."""
    dim = math.prod(z.shape[1:])
    return -0.5 * dim * math.log(2 * math.pi * std**2) - sum_except_batch((z / std) ** 2) / 2


def table_index(t: Float[Array, "b"], num_steps: int) -> Array:
    """Index floor(t (num_steps - 1)) of the step that ends at t of [0, 1]: 0 .. num_steps - 1.

    Times of the sampling grid lie at or just above whole numbers; rounding in single precision can
    fall a few 1e-8 num_steps short of them, so that much is added before the floor.
    """
    return jnp.floor(t * (num_steps - 1) + 1.2e-7 * num_steps).astype(jnp.int32)
