# SPDX-License-Identifier: Apache-2.0
"""Picture files as exact arrays, or one line that says why not.

Pillow reads more than it says: it drops alpha channels, the low byte of 16-bit colours and all but
the first page. Each of these is an error here unless nothing is lost by it.
"""

import os

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps
from scipy import ndimage

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
DAMAGED = ("raise", "skip")
"""What can be done about a picture that cannot be read."""
LOSSY_GREYS = 0.02
"""Share of pixels of a JPEG mask that may be neither nearly black nor nearly white."""


def load_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """An 8-bit picture in RGB; grey and palette pictures become what they look like.

    Raises: ValueError, one line, for files that are damaged, of 16 bits, transparent or of pages.
    """
    picture = _opened(path)
    if picture.mode not in ("1", "L", "RGB"):
        raise ValueError(
            f"{path} needs 8-bit grey or RGB pixels; got mode {picture.mode}. Which levels are "
            "black and white is not known here: convert it first."
        )
    return np.asarray(picture.convert("RGB"))


def load_mask(path: str | os.PathLike) -> Int32[np.ndarray, "h w"]:
    """The 4-connected regions of a mask of two levels, 0 and any other, numbered from 1.

    A JPEG mask is cut at half its highest level, if nearly all pixels are near the ends.
    Raises: ValueError, one line, as `load_image` and for masks of more levels.
    """
    levels = _levels(path)
    if str(path).lower().endswith((".jpg", ".jpeg")):
        inside = _cut(path, levels)
    else:
        values = np.unique(levels)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            listed = ", ".join(map(str, values[:4])) + (", …" if len(values) > 4 else "")
            raise ValueError(
                f"{path} needs two levels, 0 and one other, to be a mask; got {len(values)}: "
                f'{listed}. Read numbered instances with masks="instances".'
            )
        inside = levels > 0
    return ndimage.label(inside)[0].astype(np.int32)


def load_instances(path: str | os.PathLike) -> Int32[np.ndarray, "h w"]:
    """A picture whose levels number the instances, 8 or 16 bits; renumbered from 1 without gaps."""
    levels = _levels(path)
    values, numbers = np.unique(np.append(levels.ravel(), 0), return_inverse=True)
    if values[0] < 0:
        raise ValueError(f"{path} needs levels from 0 on to number instances; got {values[0]}.")
    return numbers[:-1].reshape(levels.shape).astype(np.int32)


def _opened(path: str | os.PathLike) -> Image.Image:
    """The decoded picture, upright, with palettes resolved and opaque alpha dropped."""
    try:
        with Image.open(path) as file:
            pages, wide = getattr(file, "n_frames", 1), _wide_colours(file)
            file.load()
            picture = ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no picture that can be read: {reason}") from None
    if pages > 1:
        raise ValueError(f"{path} needs to be one picture; got {pages} pages. Save them apart.")
    if wide:
        raise ValueError(f"{path} needs 8 bits per channel; got 16. Convert it first.")
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                f"{path} needs opaque pixels; got transparent ones. Lay it over a background."
            )
        picture = picture.convert("RGB")
    return picture


def _wide_colours(file: Image.Image) -> bool:
    """Whether Pillow would drop the low bytes of 16-bit channels, as it does without a word."""
    return file.mode in ("RGB", "RGBA", "LA") and any(
        "16" in str(part) for tile in file.tile for part in tile[3:]
    )


def _levels(path: str | os.PathLike) -> np.ndarray:
    picture = _opened(path)
    levels = np.asarray(picture).astype(np.int64)
    if levels.ndim == 3:
        if (levels != levels[..., :1]).any():
            raise ValueError(f"{path} needs grey levels to be a mask; got colours.")
        levels = levels[..., 0]
    return levels


def _cut(path: str | os.PathLike, levels: np.ndarray) -> np.ndarray:
    share = levels / max(1, levels.max())
    between = np.mean((share > 0.25) & (share < 0.75))
    if between > LOSSY_GREYS:
        raise ValueError(
            f"{path} needs to be nearly black and white to be a mask; {between:.0%} of its pixels "
            "are grey."
        )
    # A mask without anything is black up to the ringing of its compression.
    return levels > max(32, levels.max()) / 2
