# SPDX-License-Identifier: Apache-2.0
"""The ADM network of Dhariwal and Nichol, as EDM trains it.

It differs from NCSN++ in several ways: labels scale and shift the normalised activations, attention
has several heads and follows every block of a level, residual sums are not rescaled, and resampling
has no weights.
Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Section 3; Karras et al. 2022, arXiv:2206.00364,
Appendix F.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from scorejax.models.convolution import conv
from scorejax.models.fir import mean_downsample, nearest_upsample
from scorejax.models.layers import Dense, Dropout, GroupNorm, attend
from scorejax.models.ncsnpp import require_halvings
from scorejax.models.songunet import (
    augmentation_embedding,
    labels_or_zeros,
    use_labels,
    withhold_labels,
)
from scorejax.random import Rng

Dtype = Any

EPSILON = 1e-5
"""Constant added to the variance in ADM's group normalisations."""
CHANNELS_PER_HEAD = 64


def _initializers(fan_in: int, *, zero: bool) -> dict[str, nn.initializers.Initializer]:
    """Initializers of weights and biases: uniform in +-1 / sqrt(fan_in), or zero."""
    if zero:
        return {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.zeros}
    bound = 1 / math.sqrt(fan_in)
    bias = lambda key, shape, dtype=float: jax.random.uniform(key, shape, dtype, -bound, bound)
    weights = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return {"kernel_init": weights, "bias_init": bias}


class FanInConv(nn.Module):
    """3x3 convolution; weights and biases start uniform in +-1 / sqrt(fan_in), or at zero."""

    features: int
    zero: bool = False
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        shape = (3, 3, x.shape[-1], self.features)
        init = _initializers(math.prod(shape[:3]), zero=self.zero)
        kernel = self.param("kernel", init["kernel_init"], shape)
        bias = self.param("bias", init["bias_init"], shape[-1:])
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv(x, kernel) + bias[None, None, None]


def fan_in_dense(
    features: int, fan_in: int, *, name: str, zero: bool = False, dtype: Dtype = None
) -> Dense:
    """Linear map of fan_in channels, with the initialisation of `FanInConv`."""
    return Dense(features, dtype=dtype, name=name, **_initializers(fan_in, zero=zero))


def cosine_sine_embedding(label: Float[Array, "b"], dim: int) -> Float[Array, "b dim"]:
    """Cosines, then sines, of the label at the dim / 2 frequencies 10,000^(-2 k / dim), k >= 0.

    Source: Vaswani et al. 2017, arXiv:1706.03762, Section 3.5, with cosines first.
    """
    frequencies = np.exp(-math.log(10_000.0) * np.arange(dim // 2) / (dim // 2))
    angles = label[:, None] * jnp.asarray(frequencies, label.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ADMBlock(nn.Module):
    """Residual block; `resample` acts on both paths before the first convolution.

    `temb` (b, d), the activated embedding, scales and shifts the normalised activations.
    """

    features: int
    dropout: float = 0.0
    resample: Callable[[Array], Array] | None = None
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Array, rng: Rng | None) -> Array:
        h = nn.silu(GroupNorm(epsilon=EPSILON, name="norm_0")(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = FanInConv(self.features, dtype=self.dtype, name="conv_0")(h)
        modulation = fan_in_dense(2 * self.features, temb.shape[-1], name="temb")(temb)
        scale, shift = jnp.split(modulation.astype(h.dtype)[:, None, None], 2, axis=-1)
        h = nn.silu(GroupNorm(epsilon=EPSILON, name="norm_1")(h) * (1 + scale) + shift)
        h = Dropout(self.dropout, name="dropout")(h, rng)
        h = FanInConv(self.features, zero=True, dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = fan_in_dense(self.features, x.shape[-1], name="shortcut", dtype=self.dtype)(x)
        return x + h


class MultiHeadAttention(nn.Module):
    """Residual self-attention over all pixels, with channels // 64 heads.

    With fewer than 64 channels it is the identity. Memory grows with (h w)^2.
    """

    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        num_heads = channels // CHANNELS_PER_HEAD
        if not num_heads:
            return x
        h = GroupNorm(epsilon=EPSILON, name="norm")(x).reshape(batch, -1, channels)

        def project(name: str) -> Float[Array, "b*n q c/n"]:
            mapped = fan_in_dense(channels, channels, name=name, dtype=self.dtype)(h)
            split = mapped.reshape(batch, height * width, num_heads, -1)
            return split.transpose(0, 2, 1, 3).reshape(batch * num_heads, height * width, -1)

        h = attend(project("query"), project("key"), project("value"))
        h = h.reshape(batch, num_heads, height * width, -1).transpose(0, 2, 1, 3).reshape(x.shape)
        return x + fan_in_dense(channels, channels, zero=True, name="out", dtype=self.dtype)(h)


class DhariwalUNet(nn.Module):
    """The network (x (b, h, w, c), noise_label (b,), ...) -> (b, h, w, out_channels).

    Level l has nf * ch_mult[l] channels and half the size of the previous level. Attention acts at
    the sizes in `attn_resolutions`, and always in the middle. Labels, `out_channels`, `dtype` and
    `dropout_rng` are as in `SongUNet`.

    Raises: ValueError if the image is not square or cannot be halved len(ch_mult) - 1 times, a
    width does not divide into groups, or labels have the wrong size.
    """

    nf: int = 192
    ch_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    channel_mult_emb: int = 4
    out_channels: int | None = None
    label_dim: int = 0
    label_dropout: float = 0.0
    augment_dim: int = 0
    dtype: Dtype = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        noise_label: Array,
        class_labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b h w d"]:
        require_halvings(x.shape, len(self.ch_mult) - 1)
        temb = self._embed(noise_label, class_labels, augment_labels, dropout_rng)
        h, skips = self._encode(x, temb, dropout_rng)
        h = self._block(h.shape[-1], name="middle_block_0")(h, temb, dropout_rng)
        h = MultiHeadAttention(dtype=self.dtype, name="middle_attn")(h)
        h = self._block(h.shape[-1], name="middle_block_1")(h, temb, dropout_rng)
        h = self._decode(h, skips, temb, dropout_rng)
        h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        h = nn.silu(GroupNorm(epsilon=EPSILON, name="out_norm")(h))
        return FanInConv(self.out_channels or x.shape[-1], zero=True, name="out_conv")(h)

    def _embed(
        self,
        label: Array,
        class_labels: Array | None,
        augment_labels: Array | None,
        rng: Rng | None,
    ) -> Array:
        label = label.astype(jnp.promote_types(label.dtype, jnp.float32))
        h = cosine_sine_embedding(label, self.nf)
        if use_labels("augment_labels", augment_labels, self.augment_dim):
            layer = augmentation_embedding(self.nf, init_scale=0.0)
            h = h + layer(labels_or_zeros(augment_labels, self.augment_dim, h))
        features = self.channel_mult_emb * self.nf
        h = nn.silu(fan_in_dense(features, self.nf, name="temb_0")(h))
        h = fan_in_dense(features, features, name="temb_1")(h)
        if use_labels("class_labels", class_labels, self.label_dim):
            classes = labels_or_zeros(class_labels, self.label_dim, h)
            classes = withhold_labels(classes, self.label_dropout, rng)
            unit = nn.initializers.normal(1.0)
            layer = nn.Dense(features, use_bias=False, kernel_init=unit, name="class_embedding")
            h = h + layer(classes)
        return nn.silu(h)

    def _encode(self, x: Array, temb: Array, rng: Rng | None) -> tuple[Array, list[Array]]:
        """Features of the coarsest level, and the skip connections for `_decode`."""
        widths = [self.nf * multiple for multiple in self.ch_mult]
        h = FanInConv(widths[0], dtype=self.dtype, name="conv_in")(x)
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                block = self._block(h.shape[-1], mean_downsample, name=f"down_{level - 1}_resample")
                h = block(h, temb, rng)
                skips.append(h)
            for i in range(self.num_res_blocks):
                h = self._block(width, name=f"down_{level}_block_{i}")(h, temb, rng)
                h = self._attend(h, name=f"down_{level}_attn_{i}")
                skips.append(h)
        return h, skips

    def _decode(self, h: Array, skips: list[Array], temb: Array, rng: Rng | None) -> Array:
        """Features of the finest level."""
        for level in reversed(range(len(self.ch_mult))):
            width = self.nf * self.ch_mult[level]
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(width, name=f"up_{level}_block_{i}")(h, temb, rng)
                h = self._attend(h, name=f"up_{level}_attn_{i}")
            if level:
                block = self._block(width, nearest_upsample, name=f"up_{level}_resample")
                h = block(h, temb, rng)
        return h

    def _block(
        self, width: int, resample: Callable[[Array], Array] | None = None, *, name: str
    ) -> nn.Module:
        kind = nn.remat(ADMBlock) if self.remat else ADMBlock
        return kind(width, self.dropout, resample, self.dtype, name=name)

    def _attend(self, h: Array, *, name: str) -> Array:
        if h.shape[1] not in self.attn_resolutions:
            return h
        return MultiHeadAttention(self.dtype, name=name)(h)
