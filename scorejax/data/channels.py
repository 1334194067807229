# SPDX-License-Identifier: Apache-2.0
"""Reads pictures of any number of channels, of 8 or 16 bits or floats, and normalises each.

Files are TIFF, with the channels interleaved, as planes or as pages, and whatever
`picture_files.load_image` reads; grey PNGs may have 16 bits.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from scorejax.choices import require_known
from scorejax.data.large_pictures import MAX_PIXELS, require_pixels
from scorejax.data.picture_files import load_grey16, load_image

NORMALISATIONS = ("levels", "percentiles", "standard")
"""How levels become the network's input: divided by 255; each channel's percentiles `LOW` and
`HIGH` to 0 and 1; each channel to mean 0 and standard deviation 1."""
LOW, HIGH = 1.0, 99.8
"""Percentiles that are common for fluorescence, where few pixels are bright."""
TIFFS = (".tif", ".tiff")
FEWEST_CHANNELS_LAST = 64
"""An axis shorter than this, at the end of an array or else at its start, holds the channels."""


def load_channels(
    path: str | os.PathLike, num_channels: int, *, max_pixels: int = MAX_PIXELS
) -> Shaped[np.ndarray, "h w num_channels"]:
    """Reads a picture of `num_channels` channels as uint8, uint16 or float32 (h, w, c).

    One channel is repeated where three are wanted, as `load_image` does.
    Raises: ValueError, one line, if the file is damaged, has another number of channels, other
    numbers than those, or numbers that are not finite.
    """
    stored = _read_tiff(path) if pathlib.Path(path).suffix.lower() in TIFFS else None
    if stored is not None:
        pixels = _channels_last(path, stored)
    else:
        pixels = load_grey16(path)
        pixels = load_image(path, max_pixels=max_pixels) if pixels is None else pixels[..., None]
        if num_channels == 1 and (pixels == pixels[..., :1]).all():
            pixels = pixels[..., :1]
    require_pixels(path, pixels.shape[1::-1], max_pixels)
    if pixels.shape[2] == 1 and num_channels == 3:
        pixels = pixels.repeat(3, axis=2)
    if pixels.shape[2] != num_channels:
        raise ValueError(
            f"{path} needs num_channels={num_channels} channels; got {pixels.shape[2]}, of "
            f"{pixels.shape[0]} x {pixels.shape[1]} pixels."
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        if pixels.dtype.kind not in "iuf":
            raise ValueError(f"{path} needs real numbers; got {pixels.dtype}.")
        pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError(f"{path} needs finite numbers; some are not.")
    return pixels


def normalised(
    name: str, image: Shaped[np.ndarray, "h w c"], kind: str
) -> UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]:
    """The input of a network: uint8 as it is by "levels", else float32, each picture by itself.

    A channel without contrast becomes 0. `name` is for the error.
    Raises: ValueError, one line, by "levels" for other numbers than 8-bit ones, whose range is not
    known.
    """
    require_known("normalisation", kind, NORMALISATIONS)
    if kind == "levels":
        if image.dtype != np.uint8:
            raise ValueError(
                f'{name} needs 8 bits per channel with normalisation="levels"; got {image.dtype}. '
                'Set normalisation="percentiles" or "standard".'
            )
        return image
    values = image.astype(np.float64)
    if kind == "percentiles":
        low, high = np.percentile(values, (LOW, HIGH), axis=(0, 1))
        scale = high - low
    else:
        low, scale = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
    contrast = np.where(scale > 0, scale, np.inf)
    return ((values - low) / contrast).astype(np.float32)


def displayed(image: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Shows a picture of any channels: RGB as it is, else its first three between black and white.

    One channel is grey; of two the third colour is black.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    shown = normalised("picture", image[..., :3], "percentiles")
    if shown.shape[2] == 1:
        shown = shown.repeat(3, axis=2)
    shown = np.pad(shown, ((0, 0), (0, 0), (0, 3 - shown.shape[2])))
    return (255 * shown.clip(0, 1)).round().astype(np.uint8)


def _read_tiff(path: str | os.PathLike) -> np.ndarray | None:
    """All pixels of a TIFF; None if it is damaged, or compressed as only Pillow can read it."""
    import tifffile  # Comes with scikit-image; imported here since it takes a while.

    try:
        pixels = tifffile.imread(path)
    except Exception:  # Of many types; Pillow then reads the file or names the reason.
        return None
    return pixels if pixels.size else None


def _channels_last(path: str | os.PathLike, pixels: np.ndarray) -> np.ndarray:
    """(h, w, c) of an array (h, w), (h, w, c) or (c, h, w). Raises: ValueError for others."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.ndim == 3 and min(pixels.shape) > 0:
        if pixels.shape[2] < min(FEWEST_CHANNELS_LAST, *pixels.shape[:2]):
            return pixels
        if pixels.shape[0] < min(FEWEST_CHANNELS_LAST, *pixels.shape[1:]):
            return np.moveaxis(pixels, 0, 2)
    raise ValueError(
        f"{path} needs to be (h, w), (h, w, channels) or (channels, h, w); got {pixels.shape}."
    )
