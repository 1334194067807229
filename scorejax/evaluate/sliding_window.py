# SPDX-License-Identifier: Apache-2.0
"""A network that takes tiles, run over an image of any size.

Tiles overlap. Near an inner edge a tile's answer lacks what the network would have seen beyond it,
so `margin` pixels are thrown away there and over the rest of the overlap one tile fades into the
next. If `margin` is at least the radius of the network's receptive field, what comes out is what
the network gives for the whole image; if not, neighbouring tiles disagree by some delta, and the
step from pixel to pixel that this adds is at most delta / (overlap - 2 margin) along an axis.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scorejax.data.transforms import to_unit

Predict = Callable[[np.ndarray], ArrayLike]
"""float32 (b, tile, tile, c) -> (b, tile, tile, k), each example on its own."""


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
    """The blended answers of `predict` for an image (h, w, c); uint8 is mapped to [0, 1] first.

    `predict` always gets `batch_size` tiles, so it compiles once; for all devices give it
    `functools.partial(parallel.map_over_devices(network), variables)`. Tiles begin at multiples of
    `multiple`, by which the network reduces its input, so that pooling windows lie as they would in
    the whole image; the image is mirrored at the bottom and the right until tiles fit. Beside the
    image and the network's own memory this needs 4 k h w bytes for the result and about
    4 tile^2 (batch_size (c + k) + c + k) for tiles, whatever the size of the image.
    Raises: ValueError for sizes that do not fit together, or another output shape.
    """
    _require_fit(image, tile, overlap, margin, multiple, batch_size)
    height, width = image.shape[:2]
    across = [
        _mirrored(side, max(tile, -(-side // multiple) * multiple)) for side in (height, width)
    ]
    step = max(multiple, (tile - overlap) // multiple * multiple)
    weights = [tile_weights(len(pixels), tile, step, margin, multiple) for pixels in across]
    blended = None
    tiles = itertools.product(weights[0].items(), weights[1].items())
    for group in _groups(tiles, batch_size):
        answers = _answers(predict, _batch(image, across, group, tile, batch_size))
        if blended is None:
            blended = np.zeros((height, width, answers.shape[-1]), np.float32)
        _add(blended, group, answers)
        del answers  # Or they, and perhaps their tiles, would be held beside the next ones.
    return blended


def tile_weights(
    length: int, tile: int, step: int, margin: int, multiple: int
) -> dict[int, np.ndarray]:
    """The weight (tile,) of each tile along an axis, by its start; they add up to 1 at each pixel.

    Tiles are as few as lie at most `step` apart, at even distances up to rounding to `multiple`,
    which `step` and `length - tile` need to be multiples of. A weight is zero within `margin` of an
    inner edge, and flat up to the edges of the image. All fades are as wide as the narrowest
    overlap allows, so that from a pixel to the next weights together rise by at most
    1 / (tile - step - 2 margin), and fall by as much, also where three tiles overlap.
    """
    units, gaps = (length - tile) // multiple, -(-(length - tile) // step)
    starts = [index * units // gaps * multiple for index in range(gaps)] + [length - tile]
    widest = max(np.diff(starts), default=0)
    ramp = max(1, tile - widest - 2 * margin)
    # One tile fades into the next about the middle of their overlap. Each weight is what has faded
    # in less what has faded out, so that the sum is 1 however many tiles lie there.
    middles = [(start + after + tile) / 2 for start, after in itertools.pairwise(starts)]
    middles = [-np.inf, *middles, np.inf]
    places = np.arange(tile) + 0.5
    faded = lambda start, middle: ((start + places - middle) / ramp + 0.5).clip(0, 1)
    return {
        start: (faded(start, before) - faded(start, after)).astype(np.float32)
        for start, before, after in zip(starts, middles[:-1], middles[1:], strict=True)
    }


def _batch(
    image: np.ndarray, across: list[np.ndarray], group: list, tile: int, batch_size: int
) -> Float[np.ndarray, "b tile tile c"]:
    """The tiles of a group; a last group that is short is filled up with black ones."""
    batch = np.zeros((batch_size, tile, tile, image.shape[2]), np.float32)
    for place, ((top, _), (left, _)) in zip(batch, group, strict=False):
        rows, columns = across[0][top : top + tile], across[1][left : left + tile]
        place[:] = _unit(image[rows[:, None], columns])
    return batch


def _add(blended: np.ndarray, group: list, answers: np.ndarray) -> None:
    """Adds weighted answers to the part of the result that each tile covers, in place."""
    for ((top, down), (left, right)), answer in zip(group, answers, strict=False):
        kept = blended[top : top + len(down), left : left + len(right)]
        rows, columns = kept.shape[:2]
        weight = down[:rows, None] * right[None, :columns]
        kept += answer[:rows, :columns] * weight[..., None]


def _mirrored(side: int, padded: int) -> np.ndarray:
    """Which pixel lies at each place of an axis that is mirrored at its end."""
    return np.pad(np.arange(side), (0, padded - side), mode="symmetric")


def _unit(piece: np.ndarray) -> np.ndarray:
    return to_unit(piece) if piece.dtype == np.uint8 else piece.astype(np.float32)


def _groups(items: Iterator, size: int) -> Iterator[list]:
    while group := list(itertools.islice(items, size)):
        yield group


def _answers(predict: Predict, batch: np.ndarray) -> np.ndarray:
    answers = np.asarray(predict(batch))
    if answers.ndim != 4 or answers.shape[:3] != batch.shape[:3]:
        raise ValueError(
            f"predict needs to return {batch.shape[:3]} and a channel axis; got {answers.shape}."
        )
    return answers


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
