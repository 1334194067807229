# SPDX-License-Identifier: Apache-2.0
"""Instance normalisation++, which retains the channel means, for images (b, h, w, c).

Source: Song & Ermon 2019, arXiv:1907.05600, Appendix A.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.models.layers import channel_moments

Norm = Callable[..., Callable[[Array, Array | None], Array]]
"""norm(name=...) returns a function (x, label) -> normalised x."""


def normalize_plus(x: Array, alpha: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
    """Instance normalisation that adds back the channel means, normalised over the channels.

    alpha, gamma and beta are (b, c) or (1, c). The variance of the means is unbiased, as in the
    published code. Source: arXiv:1907.05600, Appendix A.
    """
    mean, variance = channel_moments(x)
    centred = mean - jnp.mean(mean, axis=-1, keepdims=True)
    spread = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
    kept = alpha * centred * jax.lax.rsqrt(spread + epsilon)
    multiplier = gamma * jax.lax.rsqrt(variance + epsilon)
    offset = beta + gamma * kept - mean * multiplier
    return (multiplier[:, None, None] * x + offset[:, None, None]).astype(x.dtype)


class InstanceNormPlus(nn.Module):
    """`normalize_plus` with one set of parameters for all labels."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], label: Array | None = None) -> Array:
        shape = x.shape[-1:]
        alpha = self.param("alpha", _near_one, shape)
        gamma = self.param("gamma", _near_one, shape)
        beta = self.param("beta", nn.initializers.zeros, shape)
        return normalize_plus(x, alpha[None], gamma[None], beta[None], epsilon=self.epsilon)


class ConditionalInstanceNormPlus(nn.Module):
    """`normalize_plus` with separate parameters for each of `num_scales` noise levels."""

    num_scales: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], label: Int[Array, "b"]) -> Array:
        table = self.param("table", _near_one_and_zero, (self.num_scales, 3 * x.shape[-1]))
        # A matrix product instead of indexing: XLA's CPU compiler does not finish on a gather that
        # is recomputed in the backward pass.
        level = jax.nn.one_hot(label.astype(jnp.int32), self.num_scales)
        of_level = jnp.matmul(level, table, precision=jax.lax.Precision.HIGHEST)
        gamma, alpha, beta = jnp.split(of_level, 3, axis=-1)
        return normalize_plus(x, alpha, gamma, beta, epsilon=self.epsilon)


def no_norm(*, name: str) -> Callable[[Array, Array | None], Array]:
    """Returns the identity in x, in place of a normalisation."""
    return lambda x, label: x


class VarianceNorm(nn.Module):
    """Divides each channel by its unbiased standard deviation and scales it."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        alpha = self.param("alpha", _near_one, x.shape[-1:])[None]
        pixels = x.shape[1] * x.shape[2]
        variance = channel_moments(x)[1] * (pixels / (pixels - 1))
        multiplier = alpha * jax.lax.rsqrt(variance + self.epsilon)
        return (multiplier[:, None, None] * x).astype(x.dtype)


def _near_one(rng: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(rng, shape, dtype)


def _near_one_and_zero(rng: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Initialises gamma and alpha near one and beta at zero, concatenated."""
    gamma_alpha = _near_one(rng, (shape[0], shape[1] // 3 * 2), dtype)
    return jnp.concatenate([gamma_alpha, jnp.zeros((shape[0], shape[1] // 3), dtype)], axis=1)
