# SPDX-License-Identifier: Apache-2.0
"""Kernels divided by their largest singular value, which power iteration follows.

Beside each such kernel in "params" the collection "spectral" holds `u` (d,), an estimate of its
right singular vector. A layer makes one iteration from the stored u to find the singular value, and
never writes: a network is a pure function of both collections. Training calls `advance` once per
step to keep the iterated vectors; in a chain of Langevin steps u stays fixed.
Source: Miyato et al. 2018, arXiv:1802.05957, Algorithm 1; constants as in the code of
arXiv:2012.08125.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from scorejax.models.layers import Conv, Dtype, fan_avg_uniform

Rescale = Callable[[Array, Array], Array]
"""(kernel, its largest singular value) -> the kernel that a layer applies."""


def to_unit(kernel: Array, sigma: Array) -> Array:
    """Scales the kernel to largest singular value 1."""
    return kernel / sigma


def to_at_most_unit(kernel: Array, sigma: Array) -> Array:
    """Scales the kernel down to largest singular value 1; smaller ones, such as 0, it keeps."""
    return kernel / jnp.maximum(sigma + 1e-6, 1)


def power_iteration(
    kernel: Float[Array, "*r d"], u: Float[Array, "d"]
) -> tuple[Float[Array, ""], Float[Array, "d"]]:
    """Largest singular value of the kernel as a matrix (r, d), and the iterated u of unit length.

    Both are estimates from one iteration. The value is differentiable in the kernel, with the
    vectors held fixed.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    # In the reduced precision that accelerators multiply with, the value would be off by 1 %.
    product = lambda a, b: jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
    v = _unit(product(lax.stop_gradient(matrix), lax.stop_gradient(u)))
    u = _unit(product(v, lax.stop_gradient(matrix)))
    return product(product(v, matrix), u), u


def advance(params: Mapping[str, Any], spectral: Mapping[str, Any]) -> dict[str, Any]:
    """The collection "spectral" after one more iteration with the kernels in `params`."""
    kernels = flatten_dict(params)
    moved = {
        path: power_iteration(kernels[(*path[:-1], "kernel")], u)[1]
        for path, u in flatten_dict(spectral).items()
    }
    return unflatten_dict(moved)


def rescaled(module: nn.Module, kernel: Float[Array, "*r d"], rescale: Rescale | None) -> Array:
    """The kernel that a layer applies; its vector u is a variable of `module`.

    u starts at random and has had one iteration when training begins. None keeps the kernel.
    """
    if rescale is None:
        return kernel

    def initial() -> Float[Array, "d"]:
        normal = jax.random.truncated_normal(module.make_rng("params"), -2, 2, kernel.shape[-1:])
        return power_iteration(kernel, 0.02 * normal.astype(kernel.dtype))[1]

    u = module.variable("spectral", "u", initial).value
    return rescale(kernel, power_iteration(kernel, u)[0])


class SpectralConv(Conv):
    """Convolution whose kernel, as a matrix (h w in, out), is rescaled."""

    rescale: Rescale | None = to_unit

    def applied_kernel(self, shape: tuple[int, ...]) -> Float[Array, "h w c d"]:
        return rescaled(self, super().applied_kernel(shape), self.rescale)


class SpectralDense(nn.Module):
    """Linear map of the last axis, with a bias, whose kernel is rescaled."""

    features: int
    rescale: Rescale | None = to_unit
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        kernel = self.param("kernel", fan_avg_uniform(), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = rescaled(self, kernel, self.rescale)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = x.reshape(-1, x.shape[-1]) @ kernel + bias[None]
        return y.reshape(*x.shape[:-1], self.features)


def _unit(x: Float[Array, "d"]) -> Float[Array, "d"]:
    """x / |x|, or x * 1e6 if |x| < 1e-6."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x**2), 1e-12))
