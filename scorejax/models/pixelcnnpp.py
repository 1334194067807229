# SPDX-License-Identifier: Apache-2.0
"""The PixelCNN++ trunk: a context for each value of an image, computed from earlier values.

The order is raster order: rows, pixels of a row, channels of a pixel. One stream of gated residual
blocks sees the rows above a pixel; a second stream sees the first one and the pixels to the left.
Each is a U-Net whose blocks on the way down have short-cuts to those on the way up. The last layer
adds the earlier channels of the pixel itself.

This differs from the published network in two ways. The input is shifted before the first
convolutions, where the published network shifts their outputs. Channels of a pixel depend on each
other through their contexts, where the published network shifts the means of a mixture.
Source: Salimans et al. 2017, arXiv:1701.05517, Section 2.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax import lax
from jaxtyping import Array, Float, Int

from scorejax.choices import require
from scorejax.models.causal_unet import CausalUNet, Conditioning
from scorejax.models.layers import Dtype
from scorejax.models.line_buffer import NextPixel, NextRow, WholeImage, update_if
from scorejax.models.weight_norm import WeightNormConv, lengths
from scorejax.random import Rng

ABOVE, LEFT = (2, 3), (2, 2)
"""Sizes of the kernels: rows above and columns on both sides, or columns to the left alone."""


class PixelCNNPP(nn.Module):
    """PixelCNN++ trunk for images of `shape` (h, w, channels) with contexts of `features` entries.

    There are `num_blocks` blocks of `num_filters` channels per stream and resolution on the way
    down. `dropout` acts in training, where `dropout_rng` is one key or one per example. Parameters
    start from the moments of the batch that `init` gets (see `weight_norm`): give it a batch of
    data. Defaults are the published ones for CIFAR-10, but for `features`.

    Raises: ValueError if a number is out of range, or the sides of the images cannot be halved
    num_resolutions - 1 times.
    """

    shape: tuple[int, int, int]
    num_filters: int = 160
    num_blocks: int = 5
    num_resolutions: int = 3
    features: int = 64
    dropout: float = 0.5
    dtype: Dtype = None

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = ("num_filters", "num_blocks", "num_resolutions", "features")
        require(vars(self), numbers, lambda v: v >= 1, "to be at least 1")
        require(vars(self), ("dropout",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
        require_sides(self.shape, self.num_resolutions)

    def dimension_order(self, num_dims: int) -> Int[np.ndarray, "d"]:
        """Flat index into an image of each position in the order: raster order."""
        return np.arange(num_dims)

    def setup(self) -> None:
        stream = (self.num_blocks, self.num_resolutions, self.dropout, self.dtype)
        self.above, self.left = CausalUNet(ABOVE, *stream), CausalUNet(LEFT, *stream)
        layer = lambda size: WeightNormConv(self.num_filters, size, dtype=self.dtype)
        self.above_in, self.row_in, self.left_in = layer(ABOVE), layer((1, 3)), layer((2, 1))
        channels = self.shape[2]
        self.context = WeightNormConv(channels * self.features)
        if channels > 1:
            shape = (channels, channels * self.features)
            self.earlier = self.param("earlier", nn.initializers.lecun_normal(), shape)

    def __call__(self, x: Float[Array, "b h w c"], *args: Any, **options: Any) -> Array:
        """Contexts, as `contexts`."""
        return self.contexts(x, *args, **options)

    def contexts(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b e"] | None = None,
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b h w c features"]:
        """Contexts of all values; those of a value do not depend on it or on later ones.

        Raises: ValueError if x is not of the network's shape, or a condition is missing.
        """
        self._require_shape(x)
        self._require_condition(condition)
        marked, conditioning = mark(x), (condition, dropout_rng)
        shifted = jnp.pad(marked, ((0, 0), (1, 0), (1, 0), (0, 0)))
        rows, image = WholeImage(), WholeImage()
        self._see_rows(shifted[:, :-1, 1:], rows, conditioning)
        h = self._see_pixels(shifted[:, 1:, :-1], image, rows.buffers, conditioning)
        return self._join_channels(h, x)

    def empty(self, x: Float[Array, "b h w c"]) -> dict[str, Any]:
        """Line buffers for a batch of images like x, before their first value."""
        self._require_shape(x)
        state = self._next_pixel({"rows": {}, "pixels": {}}, x, 0, 0, (None, None))
        state = jax.tree.map(jnp.zeros_like, state)
        return {"lengths": lengths(self.variables["params"]), "state": state}

    def advance(
        self,
        cache: dict[str, Any],
        x: Float[Array, "b h w c"],
        position: Int[Array, ""] | int,
        condition: Float[Array, "b e"] | None = None,
    ) -> tuple[dict[str, Any], Float[Array, "b features"]]:
        """The context of the value at `position` in the order; call it for 0, 1, ... in turn.

        Values of x at and after `position` do not matter. The network runs at one pixel, and its
        first stream along one row, at the first channel of a pixel, and of a row.
        Raises: ValueError if a condition is missing.
        """
        self._require_condition(condition)
        position = jnp.asarray(position)
        pixel, channel = position // self.shape[2], position % self.shape[2]
        row, column = pixel // self.shape[1], pixel % self.shape[1]
        variables = {"params": self.variables["params"], "lengths": cache["lengths"]}
        trunk = self.clone(parent=None).bind(variables)
        update = lambda trunk, state: trunk._next_pixel(state, x, row, column, (condition, None))
        state = update_if(channel == 0, update, trunk, cache["state"])
        values = lax.dynamic_slice(x, (0, row, column, 0), (x.shape[0], 1, 1, x.shape[3]))
        c = self._join_channels(state["context"], values)[:, 0, 0]
        c = lax.dynamic_index_in_dim(c, channel, axis=1, keepdims=False)
        return cache | {"state": state}, c

    def _next_pixel(
        self, state: dict[str, Any], x: Array, row: Any, column: Any, conditioning: Conditioning
    ) -> dict[str, Any]:
        """Buffers after the pixel (row, column), and its contexts before `_join_channels`."""
        b, _, width, channels = x.shape

        def next_row(trunk: "PixelCNNPP", rows: dict[str, Any]) -> dict[str, Any]:
            region = NextRow(dict(rows), row)
            x_above = lax.dynamic_slice_in_dim(x, jnp.maximum(row - 1, 0), 1, axis=1)
            x_above = jnp.where(row > 0, mark(x_above), 0)
            trunk._see_rows(x_above, region, conditioning)
            return region.buffers

        rows = update_if(column == 0, next_row, self, state["rows"])
        start = (0, row, jnp.maximum(column - 1, 0), 0)
        x_left = lax.dynamic_slice(x, start, (b, 1, 1, channels))
        x_left = jnp.where(column > 0, mark(x_left), 0)
        region = NextPixel(dict(state["pixels"]), row, column, width)
        h = self._see_pixels(x_left, region, rows, conditioning)
        return {"rows": rows, "pixels": region.buffers, "context": h}

    def _see_rows(self, x: Array, region: WholeImage, conditioning: Conditioning) -> None:
        """Runs the first stream on x, the image shifted down by one, into the buffers."""
        region.keep("row_in", self.row_in(region.window("row_in", (1, 3), x)))
        h = self.above_in(region.window("above_in", ABOVE, x))
        self.above(h, region, conditioning)

    def _see_pixels(
        self, x: Array, region: WholeImage, rows: dict[str, Any], conditioning: Conditioning
    ) -> Float[Array, "b h w n"]:
        """Runs the second stream on x, the image shifted right by one, and the last layer."""
        h = self.left_in(region.window("left_in", (2, 1), x)) + region.read(rows["row_in"])
        h = self.left(h, region, conditioning, rows)
        return self.context(nn.elu(h).astype(jnp.promote_types(h.dtype, jnp.float32)))

    def _join_channels(self, h: Array, x: Float[Array, "b h w c"]) -> Array:
        """Contexts (b, h, w, channels, features) from those of pixels and their own channels."""
        channels = self.shape[2]
        if channels > 1:
            is_earlier = np.repeat(np.tri(channels, k=-1).T, self.features, axis=1)
            h = h + x @ (is_earlier.astype(self.earlier.dtype) * self.earlier)
        return nn.silu(h).reshape(*x.shape[:3], channels, self.features)

    def _require_shape(self, x: Array) -> None:
        if x.shape[1:] != tuple(self.shape):
            raise ValueError(
                f"this PixelCNN++ needs images of shape {tuple(self.shape)}; got {x.shape[1:]}."
            )

    def _require_condition(self, condition: Array | None) -> None:
        paths = flatten_dict(self.variables.get("params", {}))
        if condition is None and any("condition" in path for path in paths):
            raise ValueError("condition needs an array, as in initialisation; got None")


def mark(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c+1"]:
    """Appends a channel of ones, which tells the image from the zeros around it."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


def require_sides(shape: tuple[int, int, int], num_resolutions: int) -> None:
    """Raises ValueError unless both sides can be halved num_resolutions - 1 times."""
    multiple = 2 ** (num_resolutions - 1)
    height, width = shape[:2]
    if height % multiple or width % multiple:
        nearest = [max(round(side / multiple), 1) * multiple for side in (height, width)]
        fitting = math.gcd(height, width)
        fitting = (fitting & -fitting).bit_length()
        raise ValueError(
            f"num_resolutions {num_resolutions} needs image sides that are multiples of "
            f"{multiple}; got {height} x {width}. Nearest are {nearest[0]} x {nearest[1]}, or "
            f"num_resolutions={fitting}."
        )
