# SPDX-License-Identifier: Apache-2.0
"""Reads picture files without loss, or raises a one-line error that names the file.

Pillow silently drops alpha channels, the low byte of 16-bit colours and every page but the first.
Here each of these is an error, unless the dropped data carry no information.
"""

import os

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps
from scipy import ndimage

DAMAGED = ("raise", "skip")
"""How to treat a picture that cannot be read."""
LOSSY_GREYS = 0.02
"""Largest fraction of grey pixels, neither nearly black nor nearly white, in a JPEG mask."""
DARKEST = 32
"""A JPEG mask with varying levels up to this one is refused: it may be all black or not."""
_BITS_PER_SAMPLE = 258


def load_image(path: str | os.PathLike) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit picture; grey and palette pictures are converted to RGB.

    Raises: ValueError, one line, if the file is damaged, transparent, or has 16-bit channels or
    more than one page.
    """
    picture = _opened(path)
    if picture.mode not in ("1", "L", "RGB"):
        raise ValueError(
            f"{path} needs 8-bit grey or RGB pixels; got mode {picture.mode}. Convert it first, "
            "since its black and white levels are unknown."
        )
    return np.asarray(picture.convert("RGB"))


def load_mask(path: str | os.PathLike) -> Int32[np.ndarray, "h w"]:
    """Reads a mask of two levels, 0 and one other, and numbers its 4-connected regions from 1.

    A JPEG mask is thresholded at half its highest level; nearly all its pixels need to be near
    black or white.
    Raises: ValueError, one line, as `load_image`; and if a mask has more than two levels or
    fractional ones, or a JPEG mask is too dark to be told from a black one.
    """
    levels = _levels(path)
    if str(path).lower().endswith((".jpg", ".jpeg")):
        inside = _threshold_jpeg(path, levels)
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
    """Reads a picture whose grey levels (up to 31 bits) are instance numbers.

    Instances are renumbered from 1 without gaps. Raises: ValueError, one line, as `load_image`; and
    if a level is negative or fractional.
    """
    levels = _levels(path)
    values, numbers = np.unique(np.append(levels.ravel(), 0), return_inverse=True)
    if values[0] < 0:
        raise ValueError(f"{path} needs non-negative levels as instance numbers; got {values[0]}.")
    return numbers[:-1].reshape(levels.shape).astype(np.int32)


def _opened(path: str | os.PathLike) -> Image.Image:
    """Decodes a picture: upright, palette resolved, opaque alpha channel dropped."""
    try:
        with Image.open(path) as file:
            num_pages, is_16_bit = getattr(file, "n_frames", 1), _loses_16_bits(file)
            file.load()
            picture = ImageOps.exif_transpose(file)
    except Exception as error:  # Damaged files make Pillow raise exceptions of many types.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable picture: {reason}") from None
    if num_pages > 1:
        raise ValueError(
            f"{path} needs to hold one picture; got {num_pages} pages. Save each to its own file."
        )
    if is_16_bit:
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


def _loses_16_bits(file: Image.Image) -> bool:
    """Whether the channels have 16 bits, of which Pillow silently drops the low byte."""
    if file.mode not in ("RGB", "RGBA", "LA"):
        return False
    # Some decoders take numbers beside the raw mode, such as the offset of a TIFF directory.
    raw_modes = [t.args if isinstance(t.args, str) else t.args[0] for t in file.tile]
    # If channels are stored separately, their raw modes ("R", ...) do not tell the bit depth.
    bits = getattr(file, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))
    return any("16" in mode for mode in raw_modes) or max(bits) > 8


def _levels(path: str | os.PathLike) -> np.ndarray:
    """Grey levels (h, w) as int64. Raises: ValueError if they are coloured or fractional."""
    picture = _opened(path)
    levels = np.asarray(picture)
    if levels.dtype.kind == "f":
        whole = (np.trunc(levels) == levels) & (np.abs(levels) < 2**31)
        if not whole.all():
            raise ValueError(
                f"{path} needs whole levels to be a mask; got {levels[~whole][0]:g}. Convert it "
                "first, since the threshold between fractional levels is unknown."
            )
    levels = levels.astype(np.int64)
    if levels.ndim == 3:
        if (levels != levels[..., :1]).any():
            raise ValueError(f"{path} needs grey levels to be a mask; got colours.")
        levels = levels[..., 0]
    return levels


def _threshold_jpeg(path: str | os.PathLike, levels: np.ndarray) -> np.ndarray:
    """Thresholds (h, w) at half the highest level. Raises: ValueError if that is ambiguous."""
    highest, lowest = levels.max(initial=0), levels.min(initial=255)
    if highest <= DARKEST:
        if highest > lowest:
            raise ValueError(
                f"{path} needs a level above {DARKEST}, or a single level, to be a JPEG mask; its "
                f"highest is {highest}, which may be a compression artefact. Save it as PNG."
            )
        return np.zeros(levels.shape, bool)  # Compression may turn black into a small constant.
    share = levels / max(1, highest)
    between = np.mean((share > 0.25) & (share < 0.75))
    if between > LOSSY_GREYS:
        raise ValueError(
            f"{path} needs nearly black and white pixels to be a mask; {between:.0%} of them are "
            "grey."
        )
    return levels > highest / 2
