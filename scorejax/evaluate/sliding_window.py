# SPDX-License-Identifier: Apache-2.0
"""Runs a network for fixed-size tiles over an image of any size.

Tiles overlap. Near an inner edge the output of a tile lacks context from beyond the edge, so
`margin` pixels are discarded there; over the rest of the overlap one tile fades into the next. If
`margin` is at least the radius of the network's receptive field, the result equals the network's
output for the whole image. If it is smaller and neighbouring tiles differ by delta, blending adds
at most delta / (overlap - 2 margin) to the difference of adjacent pixels along an axis.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scorejax.data.transforms import to_unit
from scorejax.files import scratch

Predict = Callable[[np.ndarray], ArrayLike]
"""float32 (b, tile, tile, c) -> (b, tile, tile, k); examples must not affect each other."""


def sliding_window(
    predict: Predict,
    image: np.ndarray,
    *,
    tile: int = 512,
    overlap: int = 128,
    margin: int = 32,
    multiple: int = 32,
    batch_size: int = 4,
) -> Float[np.ndarray, "h w k"]:
    """Applies `predict` to overlapping tiles of an image (h, w, c) and blends the outputs.

    A uint8 image is mapped to [0, 1] first. `predict` always receives `batch_size` tiles, so it
    compiles once; to use all devices pass
    `functools.partial(parallel.map_over_devices(network), variables)`. Tiles start at multiples of
    `multiple`, the factor by which the network shrinks its input, so that pooling windows lie as in
    the whole image. The image is mirrored at the bottom and the right until tiles fit. Beside the
    image and the network's own memory this takes 4 k h w bytes for the result, on disk where they
    are many (see `files.scratch`), and about 4 tile^2 (batch_size (c + k) + c + k) bytes for tiles,
    whatever the size of the image.
    Raises: ValueError if the sizes do not fit together or `predict` returns another shape.
    """
    _require_fit(image, tile, overlap, margin, multiple, batch_size)
    height, width = image.shape[:2]
    padded = [max(tile, -(-side // multiple) * multiple) for side in (height, width)]
    rows, columns = (
        np.pad(np.arange(side), (0, length - side), mode="symmetric")
        for side, length in zip((height, width), padded, strict=True)
    )
    step = max(multiple, (tile - overlap) // multiple * multiple)
    down, across = (tile_weights(length, tile, step, margin, multiple) for length in padded)
    tiles = list(itertools.product(down.items(), across.items()))
    blended = None
    for start in range(0, len(tiles), batch_size):
        group = tiles[start : start + batch_size]
        outputs = _predict(predict, _cut(image, rows, columns, group, tile, batch_size))
        if blended is None:
            blended = scratch((height, width, outputs.shape[-1]), np.float32)
        _add(blended, group, outputs)
        del outputs  # Frees them, and possibly their tiles, before the next batch.
    return blended


def tile_weights(
    length: int, tile: int, step: int, margin: int, multiple: int
) -> dict[int, np.ndarray]:
    """Blending weights (tile,) of the tiles along an axis, by their start.

    The weights of all tiles add up to 1 at each pixel. There are as few tiles as steps of at most
    `step` allow, evenly spaced up to rounding to `multiple`; `step` and `length - tile` need to be
    multiples of it. A weight is zero within `margin` of an inner edge and constant up to the edges
    of the image. All fades have the width that the narrowest overlap allows, so that between
    adjacent pixels the rising weights together rise by at most 1 / (tile - step - 2 margin), and
    the falling ones fall by as much, also where three tiles overlap.
    """
    units, gaps = (length - tile) // multiple, -(-(length - tile) // step)
    starts = [index * units // gaps * multiple for index in range(gaps)] + [length - tile]
    widest = max(np.diff(starts), default=0)
    ramp = max(1, tile - widest - 2 * margin)
    # One tile fades into the next around the middle of their overlap. A weight is the fade-in of
    # the tile minus the fade-in of the next, so the sum telescopes to 1.
    middles = [(start + after + tile) / 2 for start, after in itertools.pairwise(starts)]
    middles = [-np.inf, *middles, np.inf]
    pixels = np.arange(tile) + 0.5
    fade_in = lambda start, middle: ((start + pixels - middle) / ramp + 0.5).clip(0, 1)
    return {
        start: (fade_in(start, before) - fade_in(start, after)).astype(np.float32)
        for start, before, after in zip(starts, middles[:-1], middles[1:], strict=True)
    }


# The helpers are functions so that no local variable of the loop keeps a view of a batch alive.


def _cut(
    image: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    group: list,
    tile: int,
    batch_size: int,
) -> Float[np.ndarray, "b tile tile c"]:
    """Cuts the tiles of a group; black tiles fill up an incomplete batch."""
    batch = np.zeros((batch_size, tile, tile, image.shape[2]), np.float32)
    for slot, ((top, _), (left, _)) in zip(batch, group, strict=False):
        pixels = image[rows[top : top + tile, None], columns[left : left + tile]]
        slot[:] = to_unit(pixels) if pixels.dtype == np.uint8 else pixels
    return batch


def _predict(predict: Predict, batch: np.ndarray) -> np.ndarray:
    outputs = np.asarray(predict(batch))
    if outputs.ndim != 4 or outputs.shape[:3] != batch.shape[:3]:
        raise ValueError(
            f"predict needs to return {batch.shape[:3]} and a channel axis; got {outputs.shape}."
        )
    return outputs


def _add(blended: np.ndarray, group: list, outputs: np.ndarray) -> None:
    """Adds the weighted output of each tile to its place in the result, in place."""
    for ((top, down), (left, across)), output in zip(group, outputs, strict=False):
        target = blended[top : top + len(down), left : left + len(across)]
        height, width = target.shape[:2]
        weight = down[:height, None] * across[None, :width]
        target += output[:height, :width] * weight[..., None]


def _require_fit(image, tile: int, overlap: int, margin: int, multiple: int, batch_size: int):
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"sliding_window needs an image (h, w, c); got {image.shape}.")
    if min(tile, multiple, batch_size) < 1 or tile % multiple:
        raise ValueError(
            "sliding_window needs batch_size >= 1 and tile a multiple of the network's reduction "
            f"{multiple}; got batch_size={batch_size}, tile={tile}."
        )
    if margin < 0 or not 2 * margin < overlap <= tile - multiple:
        raise ValueError(
            f"sliding_window needs 0 <= 2 margin < overlap <= tile - {multiple}; got "
            f"margin={margin}, overlap={overlap}, tile={tile}."
        )
