# SPDX-License-Identifier: Apache-2.0
"""Wide residual networks that classify images, or noisy images conditional on the noise level.

Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146, with the noise level as in Song et al. 2021,
arXiv:2011.13456, Appendix I.1. GroupNorm stands in place of batch normalisation, so that the logits
of an image do not depend on the batch.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.convolution import Window, conv
from scorejax.models.layers import FourierEmbedding, GroupNorm

EPSILON = 1e-5
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideTrunk(nn.Module):
    """The layers that both networks share, from the image to the last feature map and the logits.

    Stage k has 2^k * width * widen_factor channels and half the size of the previous stage.
    Defaults are those of WRN-28-10.
    """

    num_classes: int = 10
    width: int = 16
    widen_factor: int = 10
    num_blocks: int = 4
    num_stages: int = 3

    def last_map(self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None) -> Array:
        """The last normalised feature map, before its ReLU, of standardised images."""
        h = WideConv(self.width, name="conv_in")(standardised(x))
        for stage in range(self.num_stages):
            features = self.width * self.widen_factor * 2**stage
            for i in range(self.num_blocks):
                first = stage == 0 and i == 0
                stride = 2 if stage and i == 0 else 1
                block = WideBlock(features, stride, activate_shortcut=first, name=f"{stage}_{i}")
                h = block(h, temb)
        return GroupNorm(epsilon=EPSILON, name="norm_out")(h)

    def logits(self, features: Float[Array, "b d"]) -> Float[Array, "b k"]:
        """The linear map of pooled features."""
        bound = 1 / math.sqrt(self.num_classes)
        init = lambda key, shape, dtype: (
            nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound
        )
        return nn.Dense(self.num_classes, kernel_init=init, name="out")(features)


class WideResNet(WideTrunk):
    """The classifier (x (b, h, w, c), sigma (b,)) -> logits (b, num_classes).

    x is an image plus noise of standard deviation sigma. The network first scales each image to
    mean 0 and variance 1.
    """

    embedding_features: int = 128
    fourier_scale: float = 16.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], sigma: Float[Array, "b"]) -> Float[Array, "b k"]:
        return self.logits(nn.relu(self.last_map(x, self._embed(sigma))).mean(axis=(1, 2)))

    def _embed(self, sigma: Array) -> Array:
        h = FourierEmbedding(self.embedding_features, self.fourier_scale, name="fourier")(
            jnp.log(sigma)
        )
        size = 4 * self.embedding_features
        return nn.Dense(size, name="temb_1")(nn.silu(nn.Dense(size, name="temb_0")(h)))


class WideBlock(nn.Module):
    """Residual block of two normalised 3x3 convolutions; the shortcut has no parameters."""

    features: int
    stride: int
    activate_shortcut: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], temb: Float[Array, "b e"] | None) -> Array:
        h = nn.relu(GroupNorm(epsilon=EPSILON, name="norm_0")(x))
        shortcut = self._shortcut(h if self.activate_shortcut else x)
        h = WideConv(self.features, self.stride, name="conv_0")(h)
        if temb is not None:
            h = h + nn.Dense(self.features, name="temb")(nn.silu(temb))[:, None, None]
        h = nn.relu(GroupNorm(epsilon=EPSILON, name="norm_1")(h))
        return shortcut + WideConv(self.features, name="conv_1")(h)

    def _shortcut(self, x: Array) -> Array:
        """x, averaged if the size halves and zero-padded to the new number of channels."""
        if self.stride > 1:
            x = nn.avg_pool(x, (self.stride,) * 2, (self.stride,) * 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


class WideConv(nn.Module):
    """A 3x3 convolution without bias, with zero padding."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Array:
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features))
        return conv(x, kernel, Window(((1, 1), (1, 1)), stride=(self.stride,) * 2))


def standardised(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Scales each image to mean 0 and variance 1; the divisor is at least 1 / sqrt(h w c)."""
    axes = (1, 2, 3)
    # The bound is on the variance: the gradient of the root at zero would be NaN.
    floor = 1 / math.prod(x.shape[1:])
    std = jnp.sqrt(jnp.maximum(jnp.var(x, axis=axes, keepdims=True), floor))
    return (x - jnp.mean(x, axis=axes, keepdims=True)) / std
