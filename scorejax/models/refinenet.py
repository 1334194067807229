# SPDX-License-Identifier: Apache-2.0
"""Blocks of the RefineNets that NCSN and NCSNv2 use, on images (b, h, w, c), with ELU.

Sources: Lin et al. 2017, arXiv:1611.06612; Song & Ermon 2020, arXiv:2006.09011, Appendix A.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.models.fir import mean_downsample
from scorejax.models.layers import Conv, channel_moments


class InstanceNormPlus(nn.Module):
    """Instance normalisation that keeps the means of the channels, normalised over the channels.

    Their variance is the unbiased one, as in the published weights.
    Source: Song & Ermon 2019, arXiv:1907.05600, Appendix A.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = x.shape[-1:]
        alpha = self.param("alpha", _near_one, shape)[None]
        gamma = self.param("gamma", _near_one, shape)[None]
        beta = self.param("beta", nn.initializers.zeros, shape)[None]
        mean, variance = channel_moments(x)
        centred = mean - jnp.mean(mean, axis=-1, keepdims=True)
        spread = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
        kept = alpha * centred * jax.lax.rsqrt(spread + self.epsilon)
        multiplier = gamma * jax.lax.rsqrt(variance + self.epsilon)
        offset = beta + gamma * kept - mean * multiplier
        return (multiplier[:, None, None] * x + offset[:, None, None]).astype(x.dtype)


class VarianceNorm(nn.Module):
    """Divides each channel by its standard deviation (the unbiased one) and scales it."""

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


class ResidualConvUnit(nn.Module):
    """`num_blocks` residual branches, one after the other, of `num_stages` x (ELU, convolution)."""

    num_blocks: int = 2
    num_stages: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for i in range(self.num_blocks):
            h = x
            for j in range(self.num_stages):
                h = Conv(x.shape[-1], use_bias=False, dtype=self.dtype, name=f"block_{i}_conv_{j}")(
                    nn.elu(h)
                )
            x = x + h
        return x


class ChainedResidualPooling(nn.Module):
    """Adds to ELU(x) the results of a chain of 5x5 max-poolings and convolutions."""

    num_stages: int = 2
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = path = nn.elu(x)
        for i in range(self.num_stages):
            path = nn.max_pool(path, (5, 5), padding="SAME")
            path = Conv(x.shape[-1], use_bias=False, dtype=self.dtype, name=f"conv_{i}")(path)
            x = x + path
        return x


class MultiResolutionFusion(nn.Module):
    """Sum of images of several sizes, each convolved and then resized to `size` (h, w)."""

    features: int
    size: tuple[int, int]
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Sequence[Float[Array, "b _h _w _c"]]) -> Float[Array, "b h w d"]:
        return sum(
            resize_bilinear(
                Conv(self.features, dtype=self.dtype, name=f"conv_{i}")(image), self.size
            )
            for i, image in enumerate(images)
        )


def resize_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Bilinear interpolation at `size` points an axis, of which the outer ones are x's own."""
    rows, columns = (
        jnp.asarray(_interpolation(length, new), x.dtype)
        for length, new in zip(x.shape[1:3], size, strict=True)
    )
    return jnp.einsum("ph,qw,bhwc->bpqc", rows, columns, x)


def _interpolation(length: int, new: int) -> np.ndarray:
    """Matrix (new, length) of linear interpolation whose first and last points coincide."""
    position = np.linspace(0, length - 1, new)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(length)))


class RefineNetResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut; it may shrink the image or dilate its kernels.

    `down` halves the image after the second convolution by the mean of 2 x 2 pixels; with a
    `dilation` above 1 the size is kept, and the receptive field grows instead.
    """

    features: int
    down: bool = False
    dilation: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
        shrink = mean_downsample if self.down else lambda h: h
        options = {"dilation": self.dilation, "dtype": self.dtype}
        h = nn.elu(InstanceNormPlus(name="norm_0")(x))
        h = Conv(x.shape[-1], name="conv_0", **options)(h)
        h = nn.elu(InstanceNormPlus(name="norm_1")(h))
        h = shrink(Conv(self.features, name="conv_1", **options)(h))
        if self.down or self.dilation > 1 or x.shape[-1] != self.features:
            size = 3 if self.dilation > 1 else 1
            x = shrink(Conv(self.features, size, name="shortcut", **options)(x))
        return x + h
