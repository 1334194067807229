# SPDX-License-Identifier: Apache-2.0
"""Upsampling and downsampling of images (b, h, w, c), with or without an FIR filter.

A filter is separable and defined by its taps along one axis. Taps are applied as sums of shifted
images: on a CPU this is 20 times faster than a depthwise convolution, and 60 times in the backward
pass; elsewhere XLA fuses the sums into one kernel.
Source: Karras et al. 2020, arXiv:1912.04958; the padding conventions are StyleGAN2's.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float

from scorejax.models.convolution import Pair, Window, conv
from scorejax.models.layers import fan_avg_uniform

Taps = Sequence[float]


def upfirdn2d(
    x: Float[Array, "b h w c"],
    kernel: np.ndarray,
    *,
    up: Pair = (1, 1),
    down: Pair = (1, 1),
    pad: tuple[Pair, Pair] = ((0, 0), (0, 0)),
) -> Float[Array, "b oh ow c"]:
    """Inserts up - 1 zeros after each pixel, pads, convolves, then keeps every down-th pixel.

    This is a true convolution: `kernel` (kh, kw) is flipped. A negative pad crops.
    """
    edges = [
        (low, high + factor - 1, factor - 1) for (low, high), factor in zip(pad, up, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    taps = np.asarray(kernel)[::-1, ::-1]
    rows, columns = (
        [slice(i, length - size + i + 1, step) for i in range(size)]
        for length, size, step in zip(x.shape[1:3], taps.shape, down, strict=True)
    )
    return sum(float(taps[i, j]) * x[:, rows[i], columns[j]] for i, j in np.argwhere(taps))


def normalized(taps: Taps, gain: float = 1.0) -> np.ndarray:
    """Scales taps so that their sum is `gain`."""
    taps = np.asarray(taps, float)
    return taps * (gain / taps.sum())


def _filter(x: Array, taps: np.ndarray, *, up: int = 1, down: int = 1, pad: Pair) -> Array:
    """`upfirdn2d` with the outer product of taps, one axis after the other."""
    x = upfirdn2d(x, taps[:, None], up=(up, 1), down=(down, 1), pad=(pad, (0, 0)))
    return upfirdn2d(x, taps[None], up=(1, up), down=(1, down), pad=((0, 0), pad))


def fir_upsample(
    x: Float[Array, "b h w c"], taps: Taps, *, factor: int = 2, gain: float = 1.0
) -> Float[Array, "b fh fw c"]:
    """Upsamples by `factor`, then filters; brightness is multiplied by `gain`."""
    margin = len(taps) - factor
    pad = ((margin + 1) // 2 + factor - 1, margin // 2)
    return _filter(x, normalized(taps, factor * gain**0.5), up=factor, pad=pad)


def fir_downsample(
    x: Float[Array, "b h w c"], taps: Taps, *, factor: int = 2, gain: float = 1.0
) -> Float[Array, "b h/f w/f c"]:
    """Filters, then keeps every `factor`-th pixel; brightness is multiplied by `gain`."""
    margin = len(taps) - factor
    pad = ((margin + 1) // 2, margin // 2)
    return _filter(x, normalized(taps, gain**0.5), down=factor, pad=pad)


def fir_conv_downsample(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], taps: Taps, *, factor: int = 2
) -> Float[Array, "b h/f w/f d"]:
    """Filters, then convolves with stride `factor`."""
    margin = len(taps) - factor + kernel.shape[0] - 1
    x = _filter(x, normalized(taps), pad=((margin + 1) // 2, margin // 2))
    return conv(x, kernel, Window(((0, 0), (0, 0)), stride=(factor, factor)))


def fir_upsample_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], taps: Taps, *, factor: int = 2
) -> Float[Array, "b fh fw d"]:
    """Convolves with inserted zeros, then filters: the transpose of `fir_conv_downsample`."""
    size = kernel.shape[0]
    margin = len(taps) - factor - (size - 1)
    edge = ((size - 1,) * 2,) * 2
    x = conv(x, kernel, Window(edge, image_dilation=(factor, factor)))
    pad = ((margin + 1) // 2 + factor - 1, margin // 2 + 1)
    return _filter(x, normalized(taps, factor), pad=pad)


def nearest_upsample(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b fh fw c"]:
    """Repeats every pixel `factor` times along both axes."""
    batch, height, width, channels = x.shape
    shape = (batch, height, factor, width, factor, channels)
    return jnp.broadcast_to(x[:, :, None, :, None], shape).reshape(
        batch, factor * height, factor * width, channels
    )


def mean_downsample(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h/f w/f c"]:
    """Averages blocks of factor x factor pixels."""
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return jnp.mean(blocks, axis=(2, 4))


def upsample(x: Float[Array, "b h w c"], taps: Taps | None) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles the size: filtered by the taps, or by repeating pixels if taps is None."""
    return nearest_upsample(x) if taps is None else fir_upsample(x, taps)


def downsample(x: Float[Array, "b h w c"], taps: Taps | None) -> Float[Array, "b h//2 w//2 c"]:
    """Halves the size: filtered by the taps, or by averaging 2 x 2 pixels if taps is None."""
    return mean_downsample(x) if taps is None else fir_downsample(x, taps)


class ConvDownsample(nn.Module):
    """Halves the size with a strided 3x3 convolution, after a filter if there are taps."""

    features: int
    taps: Taps | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/2 w/2 d"]:
        x, kernel, bias = _resampling_parameters(self, x)
        if self.taps is None:
            # The published networks pad only the right and the bottom.
            y = conv(x, kernel, Window(((0, 1), (0, 1)), stride=(2, 2)))
        else:
            y = fir_conv_downsample(x, kernel, self.taps)
        return y + bias[None, None, None]


class ConvUpsample(nn.Module):
    """Doubles the size with a 3x3 convolution: then filters, or first repeats pixels if no taps."""

    features: int
    taps: Taps | None = None
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2h 2w d"]:
        x, kernel, bias = _resampling_parameters(self, x)
        if self.taps is None:
            y = conv(nearest_upsample(x), kernel)
        else:
            y = fir_upsample_conv(x, kernel, self.taps)
        return y + bias[None, None, None]


def _resampling_parameters(module: nn.Module, x: Array) -> tuple[Array, Array, Array]:
    kernel = module.param("kernel", fan_avg_uniform(), (3, 3, x.shape[-1], module.features))
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    return promote_dtype(x, kernel, bias, dtype=module.dtype)
