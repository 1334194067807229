# SPDX-License-Identifier: Apache-2.0
"""Layers shared by the networks. Images are (b, h, w, c), kernels (h, w, in, out).

Weights start as in the score SDE networks: uniform, of variance 1 / mean(fan_in, fan_out).
Parameters are float32 (float64 where JAX runs in 64 bits); `dtype` is the type of the arithmetic.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from scorejax.choices import require
from scorejax.models.convolution import Window, conv, same_window
from scorejax.random import Rng, draw_rows, fold_in

Dtype = Any


def fan_avg_uniform(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initializer of variance scale / mean(fan_in, fan_out); scale 0 stands for 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


class Dense(nn.Dense):
    """Linear map of the last axis, computed as one matrix product."""

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        # XLA's CPU compiler takes up to three times as long where the other axes are several.
        y = super().__call__(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], self.features)


def dense(features: int, *, name: str, init_scale: float = 1.0, dtype: Dtype = None) -> Dense:
    """Linear map of the last axis: a 1x1 convolution if x is an image."""
    return Dense(features, kernel_init=fan_avg_uniform(init_scale), dtype=dtype, name=name)


def nin(features: int, *, name: str, init_scale: float = 0.1, dtype: Dtype = None) -> Dense:
    """Network-in-network layer: a linear map of the channels with small initial weights."""
    return dense(features, name=name, init_scale=init_scale, dtype=dtype)


class Conv(nn.Module):
    """Convolution with a square kernel of odd size; keeps the size of the image.

    With `down` it has stride 2 instead, which halves an even size; dilation does not apply.
    """

    features: int
    size: int = 3
    use_bias: bool = True
    dilation: int = 1
    down: bool = False
    init_scale: float = 1.0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.applied_kernel(shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = conv(x, kernel, self._window())
        return y if bias is None else y + bias[None, None, None]

    def applied_kernel(self, shape: tuple[int, ...]) -> Float[Array, "h w c d"]:
        """The kernel to convolve with, from the stored one; here they are the same."""
        return self.param("kernel", fan_avg_uniform(self.init_scale), shape)

    def _window(self) -> Window:
        if self.down:  # The published networks pad one pixel more at the right and the bottom.
            return Window(((self.size // 2 - 1, self.size // 2),) * 2, stride=(2, 2))
        return same_window((self.size, self.size), self.dilation)


@jax.custom_jvp
def softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + e^x)."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # jax.nn.softplus is logaddexp, whose derivative is as dear as itself: Langevin steps on a
    # perceptron take 1.3 times as long with it on a CPU.
    (x,), (dx,) = primals, tangents
    return softplus(x), nn.sigmoid(x) * dx


class Dropout(nn.Module):
    """Sets entries to zero with probability `rate` and scales the others by 1 / (1 - rate).

    `rng` is a key or one key per example; without it the layer is the identity. Layers of different
    names draw different masks from the same key.
    """

    rate: float

    def __call__(self, x: Float[Array, "b *d"], rng: Rng | None) -> Float[Array, "b *d"]:
        if rng is None or not self.rate:
            return x
        layer_rng = fold_in(rng, zlib.crc32("/".join(self.path).encode()))
        bernoulli = lambda key, shape: jax.random.bernoulli(key, 1 - self.rate, shape)
        keep = draw_rows(bernoulli, layer_rng, x.shape)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def group_count(channels: int) -> int:
    """Number of groups in NCSN++ networks: four channels per group, but at most 32 groups."""
    return min(channels // 4, 32)


_WIDTHS = (
    "Choose nf and ch_mult so that every width, and every sum of two widths that a skip connection "
    "concatenates, is a multiple of 4, and of 32 from 128 on."
)


class GroupNorm(nn.Module):
    """Group normalisation as one multiply-add per channel, with statistics in float32.

    `num_groups` defaults to `group_count(c)`. `shift` (b, c) or (c,) is added to x before the
    normalisation at no cost, since it only moves the mean of each channel. Pass biases that precede
    a normalisation this way.

    Raises: ValueError if the number of groups does not divide the number of channels.
    Source: Wu & He 2018, arXiv:1803.08494.
    """

    num_groups: int | None = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], shift: Array | None = None) -> Array:
        channels = x.shape[-1]
        num_groups = group_count(channels) if self.num_groups is None else self.num_groups
        if not num_groups or channels % num_groups:
            raise ValueError(
                f"GroupNorm needs a number of groups that divides its channels; got {channels} "
                f"channels in {num_groups} groups. {_WIDTHS}"
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        mean, variance = channel_moments(x)
        if shift is not None:
            shift = jnp.broadcast_to(shift, mean.shape)
            mean = mean + shift
        mean, variance = pool_groups(mean, variance, num_groups)
        multiplier = scale[None] * jax.lax.rsqrt(variance + self.epsilon)
        offset = bias[None] - mean * multiplier
        if shift is not None:
            offset = offset + multiplier * shift
        return (multiplier[:, None, None] * x + offset[:, None, None]).astype(x.dtype)


def channel_moments(x: Float[Array, "b h w c"]) -> tuple[Array, Array]:
    """Mean and variance (b, c) over the pixels, in two passes, at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(x, axis=(1, 2))
    # E(x - a)^2 - (mean - a)^2 does not depend on a, so all derivatives stay exact with a
    # held fixed, and the backward pass saves a sum over pixels.
    anchor = jax.lax.stop_gradient(mean)
    variance = jnp.mean((x - anchor[:, None, None]) ** 2, axis=(1, 2)) - (mean - anchor) ** 2
    return mean, variance


def pool_groups(mean: Array, variance: Array, num_groups: int) -> tuple[Array, Array]:
    """Pools the moments (b, c) of channels over groups; each channel gets those of its group."""
    grouped = (*mean.shape[:-1], num_groups, -1)
    mean, variance = mean.reshape(grouped), variance.reshape(grouped)
    pooled = jnp.mean(mean, axis=-1, keepdims=True)
    spread = jnp.mean(variance + (mean - pooled) ** 2, axis=-1, keepdims=True)
    flat = lambda a: jnp.broadcast_to(a, mean.shape).reshape(*mean.shape[:-2], -1)
    return flat(pooled), flat(spread)


class Attention(nn.Module):
    """Residual self-attention over all pixels with one head; softmax in float32.

    Memory grows with (h w)^2. `rescale` divides the residual sum by sqrt(2). `input_scale` is that
    of the initial weights of queries, keys and values. Without `normalize` there is no GroupNorm.
    """

    num_groups: int | None = None
    init_scale: float = 0.0
    rescale: bool = False
    dtype: Dtype = None
    input_scale: float = 0.1
    normalize: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        h = GroupNorm(self.num_groups, name="norm")(x) if self.normalize else x
        h = h.reshape(x.shape[0], -1, channels)
        query, key, value = (
            nin(channels, name=name, init_scale=self.input_scale, dtype=self.dtype)(h)
            for name in ("query", "key", "value")
        )
        h = attend(query, key, value)
        h = nin(channels, name="out", init_scale=self.init_scale, dtype=self.dtype)(h)
        return residual_sum(x, h.reshape(x.shape), rescale=self.rescale)


def attend(
    query: Float[Array, "b q c"], key: Float[Array, "b k c"], value: Float[Array, "b k d"]
) -> Float[Array, "b q d"]:
    """Averages values with weights softmax(query . key / sqrt(c)), in at least float32."""
    # jax.nn.dot_product_attention computes the softmax in float32 even for float64: error 1e-7.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=wide)
    weights = jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)
    return jnp.einsum("bqk,bkd->bqd", weights.astype(value.dtype), value)


def residual_sum(x: Array, h: Array, *, rescale: bool) -> Array:
    """x + h, divided by sqrt(2) if `rescale`, which preserves the variance."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class Combine(nn.Module):
    """Maps a pyramid image to the channels of h (1x1 convolution), then adds or concatenates h."""

    method: str = "sum"
    dtype: Dtype = None

    @nn.compact
    def __call__(self, pyramid: Array, h: Array) -> Array:
        pyramid = dense(h.shape[-1], name="conv", dtype=self.dtype)(pyramid)
        return pyramid + h if self.method == "sum" else jnp.concatenate([pyramid, h], axis=-1)


def sinusoidal_embedding(
    label: Float[Array, "b"], dim: int, *, max_period: float = 10_000.0
) -> Float[Array, "b dim"]:
    """Sines, then cosines, of the label at geometric frequencies 1 ... 1 / max_period.

    If `dim` is odd, the last entry is zero. Source: Vaswani et al. 2017, arXiv:1706.03762, Section
    3.5, but with dim / 2 - 1 in place of dim / 2 in the exponent.
    """
    half = dim // 2
    frequencies = np.exp(-math.log(max_period) * np.arange(half) / (half - 1))
    angles = label[:, None] * jnp.asarray(frequencies, label.dtype)[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def require_fourier_series(values: Mapping[str, Any]) -> None:
    """Raises ValueError unless `num_frequencies` >= 0 and `max_frequency` is positive."""
    require(values, ("num_frequencies",), lambda v: v >= 0, "to be at least 0")
    require(values, ("max_frequency",), lambda v: 0 < v < math.inf, "to be a positive number")


def series_frequencies(num: int, max_frequency: float, x: Float[Array, "*n"]) -> Array:
    """Angular frequencies 2 pi max_frequency k / num of k = 1 .. num, along an axis after x's."""
    steps = jnp.asarray(np.arange(1, num + 1) / num, x.dtype)
    return 2 * math.pi * max_frequency * steps.reshape((1,) * x.ndim + (-1,))


def waves(angles: Float[Array, "*n f"]) -> Float[Array, "*n 2*f"]:
    """Sines, then cosines."""
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FourierEmbedding(nn.Module):
    """Sines, then cosines, of 2 pi f x at fixed random frequencies f ~ N(0, scale^2).

    The frequencies are stored as a parameter, as in published weights, but have zero gradient.
    Source: Tancik et al. 2020, arXiv:2006.10739.
    """

    features: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, x: Float[Array, "b"]) -> Float[Array, "b 2*features"]:
        init = nn.initializers.normal(self.scale)
        frequencies = jax.lax.stop_gradient(self.param("frequencies", init, (self.features,)))
        return waves(2 * math.pi * x[:, None] * frequencies[None])


class TimeEmbedding(nn.Module):
    """Two dense layers that map an embedded label (b, d) to (b, features)."""

    features: int

    @nn.compact
    def __call__(self, embedding: Float[Array, "b d"]) -> Float[Array, "b features"]:
        h = nn.silu(dense(self.features, name="dense_0")(embedding))
        return dense(self.features, name="dense_1")(h)
