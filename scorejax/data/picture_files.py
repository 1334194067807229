# SPDX-License-Identifier: Apache-2.0
"""Picture files as exact arrays, or one line that says why not.

Pillow reads more than it says: it drops alpha channels, the low byte of 16-bit colours and all but
the first page. Each of these is an error here unless nothing is lost by it.
"""

import os
import pathlib

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps
from scipy import ndimage

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
DAMAGED = ("raise", "skip")
"""What can be done about a picture that cannot be read."""
LOSSY_GREYS = 0.02
"""Share of pixels of a JPEG mask that may be neither nearly black nor nearly white."""
DARKEST = 32
"""A JPEG mask whose highest level is from 1 to this one may be black or not: it is refused."""
_BITS_PER_SAMPLE = 258


def picture_paths(folder: pathlib.Path, *, deep: bool = False) -> list[pathlib.Path]:
    """The picture files of a folder, in the order of their paths; `deep`, of those below it too."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


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
    Raises: ValueError, one line, as `load_image`, for masks of more levels, for parts of levels and
    for a JPEG mask too dark to be told from a black one.
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
    """A picture whose levels number the instances, up to 31 bits; renumbered from 1 without gaps.

    Raises: ValueError, one line, as `load_image`, for levels below 0 and for parts of levels.
    """
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
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over.
        reason = " ".join(str(error).split()) or type(error).__name__
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
    """Whether Pillow would drop bytes of 16-bit channels, as it does without a word."""
    if file.mode not in ("RGB", "RGBA", "LA"):
        return False
    # Beside the raw mode decoders get numbers, such as the offset of a TIFF's directory.
    raw_modes = [t.args if isinstance(t.args, str) else t.args[0] for t in file.tile]
    # Of channels stored apart the raw modes, "R" and so on, do not say how many bits they have.
    bits = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return any("16" in mode for mode in raw_modes) or max(bits) > 8


def _levels(path: str | os.PathLike) -> np.ndarray:
    """The levels of a grey picture (h, w) as int64. Raises: ValueError for colours and parts."""
    picture = _opened(path)
    levels = np.asarray(picture)
    if levels.dtype.kind == "f":
        _require_whole(path, levels)
    levels = levels.astype(np.int64)
    if levels.ndim == 3:
        if (levels != levels[..., :1]).any():
            raise ValueError(f"{path} needs grey levels to be a mask; got colours.")
        levels = levels[..., 0]
    return levels


def _require_whole(path: str | os.PathLike, levels: np.ndarray) -> None:
    whole = (np.trunc(levels) == levels) & (np.abs(levels) < 2**31)
    if not whole.all():
        raise ValueError(
            f"{path} needs whole levels to be a mask; got {levels[~whole][0]:g}. Which parts of a "
            "level are inside is not known here: convert it first."
        )


def _cut(path: str | os.PathLike, levels: np.ndarray) -> np.ndarray:
    """Where a JPEG mask (h, w) is above half its highest level. Raises: ValueError if unclear."""
    highest, lowest = levels.max(initial=0), levels.min(initial=255)
    if highest <= DARKEST:
        if highest > lowest:
            raise ValueError(
                f"{path} needs levels above {DARKEST}, or one alone, to be a JPEG mask; its "
                f"highest is {highest}, which compression may have made. Save it as PNG."
            )
        return np.zeros(levels.shape, bool)  # black may be a constant of a few levels
    share = levels / max(1, highest)
    between = np.mean((share > 0.25) & (share < 0.75))
    if between > LOSSY_GREYS:
        raise ValueError(
            f"{path} needs to be nearly black and white to be a mask; {between:.0%} of its pixels "
            "are grey."
        )
    return levels > highest / 2
