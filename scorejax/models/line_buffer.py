# SPDX-License-Identifier: Apache-2.0
"""Causal convolutions on a whole image, or on its next row or pixel alone.

A causal network is written once, for any region of the image. The region extends a layer's input
there to the window that the layer's kernel covers: `WholeImage` pads with zeros; `NextRow` and
`NextPixel` add earlier values from line buffers, which hold the last one or two rows of each
layer's input. An image therefore takes as many multiplications pixel by pixel as at once.

The last row of a kernel is at the row of its output. Kernels of three columns are centred; the last
column of those of two is at the column of their output. `buffers` is a dictionary of arrays, with
the buffers at half the resolution under "below". A region changes it in place, so each call of the
network needs a new region. A missing buffer counts as zeros, as at the start of an image.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from scorejax.typing import PyTree

Index = Any
"""Row or column: an int, or an integer array of shape ()."""


def column_padding(width: int) -> tuple[int, int]:
    """Zeros left and right of an image for a kernel of `width` columns."""
    return width // 2, (width - 1) // 2


@dataclasses.dataclass
class WholeImage:
    """All pixels at once. The buffers hold nothing but what `keep` puts there."""

    buffers: dict[str, Any] = dataclasses.field(default_factory=dict)

    starts_block = True
    """Whether the region begins a row, or a pixel, at half the resolution."""

    def window(self, name: str, size: tuple[int, int], x: Float[Array, "b h w c"]) -> Array:
        """Pads x such that a kernel of `size` fits once per pixel."""
        return jnp.pad(x, ((0, 0), (size[0] - 1, 0), column_padding(size[1]), (0, 0)))

    def keep(self, name: str, x: Array) -> None:
        """Stores x in the buffers."""
        self.buffers[name] = x

    def halved(self, buffers: dict[str, Any]) -> "WholeImage":
        """The region at half the resolution."""
        return WholeImage(buffers)

    def write_block(self, lines: Array | None, block: Array) -> Array:
        """Two rows of features (lines), with what half the resolution gives; None means zeros."""
        return block

    def read_block(self, lines: Array) -> Array:
        """The part of the two rows that is in the region."""
        return lines

    def read(self, rows: Array) -> Array:
        """The part in the region of what another stream kept for its row, or for the image."""
        return rows


@dataclasses.dataclass
class NextRow(WholeImage):
    """Row `row` of an image whose rows arrive from the top; x has shape (b, 1, w, c)."""

    row: Index = 0

    @property
    def starts_block(self) -> Any:
        return self.row % 2 == 0

    def window(self, name: str, size: tuple[int, int], x: Float[Array, "b 1 w c"]) -> Array:
        if size[0] > 1:
            shape = (x.shape[0], size[0] - 1, *x.shape[2:])
            x = jnp.concatenate([self.buffers.get(name, jnp.zeros(shape, x.dtype)), x], axis=1)
            self.buffers[name] = x[:, 1:]
        return jnp.pad(x, ((0, 0), (0, 0), column_padding(size[1]), (0, 0)))

    def halved(self, buffers: dict[str, Any]) -> "NextRow":
        return NextRow(buffers, self.row // 2)

    def read_block(self, lines: Float[Array, "b 2 w c"]) -> Float[Array, "b 1 w c"]:
        return lax.dynamic_slice_in_dim(lines, self.row % 2, 1, axis=1)


@dataclasses.dataclass
class NextPixel(WholeImage):
    """Pixel (row, column) of an image whose pixels arrive in raster order; x is (b, 1, 1, c)."""

    row: Index = 0
    column: Index = 0
    width: int = 1

    @property
    def starts_block(self) -> Any:
        return (self.row % 2 == 0) & (self.column % 2 == 0)

    def window(self, name: str, size: tuple[int, int], x: Float[Array, "b 1 1 c"]) -> Array:
        b, left, channels = x.shape[0], size[1] - 1, x.shape[3]
        shape = (b, 2, left + self.width, channels)
        lines = self.buffers.get(name, jnp.zeros(shape, x.dtype))
        # Rows of even numbers are in line 0, rows of odd numbers in line 1.
        lines = lax.dynamic_update_slice(lines, x, (0, self.row % 2, left + self.column, 0))
        self.buffers[name] = lines
        window = lax.dynamic_slice(lines, (0, 0, self.column, 0), (b, 2, size[1], channels))
        return jnp.where(self.row % 2 == 1, window, window[:, ::-1])

    def halved(self, buffers: dict[str, Any]) -> "NextPixel":
        return NextPixel(buffers, self.row // 2, self.column // 2, self.width // 2)

    def write_block(self, lines: Array | None, block: Float[Array, "b 2 2 c"]) -> Array:
        if lines is None:
            lines = jnp.zeros((*block.shape[:2], self.width, block.shape[3]), block.dtype)
        return lax.dynamic_update_slice(lines, block, (0, 0, self.column, 0))

    def read_block(self, lines: Float[Array, "b 2 w c"]) -> Float[Array, "b 1 1 c"]:
        return self.read(lax.dynamic_slice_in_dim(lines, self.row % 2, 1, axis=1))

    def read(self, rows: Float[Array, "b 1 w c"]) -> Float[Array, "b 1 1 c"]:
        return lax.dynamic_slice_in_dim(rows, self.column, 1, axis=2)


def update_if(
    predicate: Any, update: Callable[[nn.Module, PyTree], PyTree], module: nn.Module, state: PyTree
) -> PyTree:
    """update(module, state) if the predicate holds, otherwise the state.

    The predicate is a bool, or an array () of bool; for an array the structures need to agree.
    """
    if isinstance(predicate, bool):
        return update(module, state) if predicate else state
    return nn.cond(predicate, update, lambda module, state: state, module, state)
