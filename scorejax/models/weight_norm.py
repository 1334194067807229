# SPDX-License-Identifier: Apache-2.0
"""Convolutions whose kernels are directions times learned lengths, started from a batch of data.

Output channel d is gain_d v_d . x / |v_d| + bias_d. `init` sets the gains and biases such that on
its example batch every channel has mean 0 and standard deviation `init_scale`. A channel that is
constant on that batch, as on one constant image, says nothing of its scale: it starts with gain
`init_scale` and bias 0.
Source: Salimans & Kingma 2016, arXiv:1602.07868, Section 3.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from scorejax.models.convolution import Window, conv
from scorejax.models.layers import Dtype


class WeightNormConv(nn.Module):
    """Convolution without padding: each position where the kernel fits in x gives an output.

    Parameters are `kernel` (v), `gain` and `bias`. The length |v| may come from the collection
    "lengths", see `lengths`; it is computed otherwise. With a 1x1 kernel the layer is a linear map
    of the channels.
    """

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    init_scale: float = 1.0
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.05), shape)
        gain = self.param("gain", nn.initializers.ones, shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, shape[-1:])
        length = self.get_variable("lengths", "length")
        if length is None:
            length = kernel_length(kernel)
        y = self._linear(*promote_dtype(x, kernel, dtype=self.dtype))
        if self.is_initializing():
            gain, bias = standardization(y, length, self.init_scale)
            self.put_variable("params", "gain", gain)
            self.put_variable("params", "bias", bias)
        y, scale, bias = promote_dtype(y, gain / length, bias, dtype=y.dtype)
        return scale[None, None, None] * y + bias[None, None, None]

    def _linear(self, x: Array, kernel: Array) -> Array:
        if x.shape[1:3] == self.size or self.size == (1, 1):
            # The kernel fits once, or sees one pixel: a matrix product, which is faster.
            matrix = kernel.reshape(-1, self.features)
            y = x.reshape(-1, matrix.shape[0]) @ matrix
            rows, columns = (x.shape[1 + i] - self.size[i] + 1 for i in range(2))
            return y.reshape(x.shape[0], rows, columns, self.features)
        return conv(x, kernel, Window(((0, 0), (0, 0)), stride=(self.stride, self.stride)))


class WeightNormSpread(WeightNormConv):
    """Transposed convolution of stride 2 that doubles the size; `size` is (2, 2) or (2, 3).

    Input (i, j) reaches rows 2 i and 2 i + 1, and columns 2 j and 2 j + 1, with a kernel of three
    columns 2 j - 1 as well.
    """

    def _linear(self, x: Float[Array, "b h w c"], kernel: Array) -> Float[Array, "b 2*h 2*w d"]:
        b, h, w, channels = x.shape
        matrix = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        taps = (x.reshape(-1, channels) @ matrix).reshape(b, h, w, *self.size, self.features)
        even, odd = taps[..., -2, :], taps[..., -1, :]
        if self.size[1] == 3:
            odd = odd + jnp.pad(taps[:, :, 1:, :, 0], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
        y = jnp.stack([even, odd], axis=4).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, 2 * h, 2 * w, self.features)


def kernel_length(kernel: Float[Array, "i j c d"]) -> Float[Array, "d"]:
    """Euclidean length |v_d| of the part of a kernel that makes each output channel."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))


def lengths(params: Mapping[str, Any]) -> dict[str, Any]:
    """The collection "lengths" of a network whose parameters are `params`.

    A network at a single pixel takes up to half of its time to compute them anew.
    """
    flat = flatten_dict(params)
    layers = [path[:-1] for path in flat if path[-1] == "gain"]
    return unflatten_dict({(*at, "length"): kernel_length(flat[(*at, "kernel")]) for at in layers})


def standardization(
    y: Float[Array, "*n d"], length: Float[Array, "d"], init_scale: float
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """Gain and bias that give gain y / length + bias mean 0 and standard deviation `init_scale`."""
    y = y.astype(length.dtype).reshape(-1, y.shape[-1]) / length[None]
    mean, variance = jnp.mean(y, axis=0), jnp.var(y, axis=0)
    # Rounding leaves a constant channel a variance of up to 1e-12 of its mean square.
    varies = variance > 1e-8 * mean**2 + 1e-10
    gain = init_scale * jnp.where(varies, lax.rsqrt(jnp.where(varies, variance, 1)), 1)
    return gain, jnp.where(varies, -mean * gain, 0)
