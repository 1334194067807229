# SPDX-License-Identifier: Apache-2.0
"""Reads picture files without loss, or raises a one-line error that names the file.

Pillow silently drops alpha channels, the low byte of 16-bit colours and every page but the first.
Here each of these is an error, unless the dropped data carry no information.
"""

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt8, UInt16
from PIL import Image
from scipy import ndimage

from scorejax.data.large_pictures import MAX_PIXELS, as_one, open_picture, require_pixels, strips
from scorejax.files import scratch, why_unreadable

DAMAGED = ("raise", "skip")
"""How to treat a picture that cannot be read."""
BACKGROUND = "white"
"""Colour over which transparent pictures are laid."""
LOSSY_GREYS = 0.02
"""Largest fraction of grey pixels, neither nearly black nor nearly white, in a lossy mask."""
DARKEST = 32
"""A lossy mask with varying levels up to this one is refused: it may be all black or not."""
LOSSY_SPECKS = 0.02
"""Largest fraction of an instance mask that is pixels of another level than all around them."""
IGNORED = -1
"""The class, or the instance, of a pixel that counts neither in a loss nor in a score."""
_BITS_PER_SAMPLE = 258


class Picture(NamedTuple):
    """Pixels of a picture file, and what reading has changed of its colours; "" for nothing."""

    pixels: UInt8[np.ndarray, "h w 3"]
    change: str


def load_image(
    path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an 8-bit picture; grey and palette pictures are converted to RGB.

    A large one is read in strips, see `large_pictures`, to an array on disk, see `files.scratch`.
    Raises: ValueError, one line, if the file is damaged, transparent, or has 16-bit channels,
    more than one page or more than `max_pixels` pixels; OSError if there is no space for it.
    """
    pixels, top = np.empty(0), 0
    for (width, height), picture in _parts(path, max_pixels):
        part = _rgb(path, _opaque(path, picture))
        if len(part) == height:
            return part
        if not top:
            pixels = scratch((height, width, 3), np.uint8)
        pixels[top : top + len(part)] = part
        top += len(part)
    return pixels


def load_picture(path: str | os.PathLike) -> Picture:
    """Reads a picture of any 8-bit colours as RGB, and says what that has changed.

    Transparent pictures are laid over white. CMYK is converted by the complement of each ink, which
    leaves colour profiles aside.
    Raises: ValueError, one line, as `load_image`, but not for a transparent picture.
    """
    picture, change = _decoded(path), ""
    if picture.mode == "RGBA":
        over = Image.new("RGBA", picture.size, BACKGROUND)
        picture = Image.alpha_composite(over, picture).convert("RGB")
        change = f"transparent, laid over {BACKGROUND}"
    elif picture.mode == "CMYK":
        picture, change = picture.convert("RGB"), "converted from CMYK to RGB"
    return Picture(_rgb(path, picture), change)


def load_grey16(path: str | os.PathLike) -> UInt16[np.ndarray, "h w"] | None:
    """Reads a grey picture of 16 bits; None for others. Raises: ValueError as `load_image`."""
    picture = _opened(path)
    return np.asarray(picture).astype(np.uint16) if picture.mode.startswith("I;16") else None


def load_mask(path: str | os.PathLike, *, ignore_label: int = IGNORED) -> Int32[np.ndarray, "h w"]:
    """Reads a mask of two levels, 0 and one other, and numbers its 4-connected regions from 1.

    Pixels of a third level, `ignore_label`, become IGNORED.
    A JPEG or WebP mask is thresholded at half its highest level; nearly all its pixels need to be
    near black or white.
    Raises: ValueError, one line, as `load_image`; and if a mask has more than two levels or
    fractional ones, or a JPEG mask is too dark to be told from a black one.
    """
    levels, ignored = _without(path, _levels(path), ignore_label)
    if _may_be_lossy(path):
        inside = _threshold_lossy(path, levels)
    else:
        values = np.unique(levels)
        if len(values) > 2 or (len(values) == 2 and values[0] != 0):
            raise ValueError(
                f"{path} needs two levels, 0 and one other, to be a mask; got {_listed(values)}. "
                'Read numbered instances with masks="instances".'
            )
        inside = levels > 0
    return np.where(ignored, IGNORED, ndimage.label(inside)[0]).astype(np.int32)


def load_instances(
    path: str | os.PathLike, *, ignore_label: int = IGNORED
) -> Int32[np.ndarray, "h w"]:
    """Reads a picture whose grey levels (up to 31 bits) are instance numbers.

    Instances are renumbered from 1 without gaps; pixels of the level `ignore_label` become IGNORED.
    Raises: ValueError, one line, as `load_image`; if a level is negative or fractional; and if
    levels are not exact, as in a JPEG or after smoothing.
    """
    levels, ignored = _without(path, _levels(path), ignore_label)
    if _may_be_lossy(path) or _share_of_specks(levels) > LOSSY_SPECKS:
        raise ValueError(
            f"{path} needs exact levels to number instances; got {_listed(np.unique(levels))}, "
            "which are lossy: JPEG, WebP and smooth resizing invent levels at edges, and so "
            "instances. Write the mask anew, as PNG."
        )
    values, numbers = np.unique(np.append(levels.ravel(), 0), return_inverse=True)
    if values[0] < 0:
        raise ValueError(f"{path} needs non-negative levels as instance numbers; got {values[0]}.")
    numbers = numbers[:-1].reshape(levels.shape)
    return np.where(ignored, IGNORED, numbers).astype(np.int32)


def load_levels(
    path: str | os.PathLike, *, ignore_label: int = IGNORED
) -> tuple[Int64[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Grey levels, 0 in the place of `ignore_label`, and where that was.

    The levels of a picture with a palette are its indices, as in the masks of Pascal VOC.
    Raises: ValueError, one line, as `load_image`; if the levels have colours without a palette, or
    fractions; and for a file that may be lossy, which invents levels.
    """
    indices = _palette_indices(path)
    levels = _levels(path) if indices is None else indices
    if _may_be_lossy(path):
        raise ValueError(f"{path} needs exact levels; JPEG and WebP invent levels at edges.")
    return _without(path, levels, ignore_label)


def load_known(path: str | os.PathLike) -> Bool[np.ndarray, "h w"]:
    """Reads a mask for inpainting: True where pixels are known, False where they are made up.

    The lighter of two grey levels is known, whatever the levels: 0 and 1, 0 and 255, floats. Masks
    with some grey pixels, as JPEGs and smooth edges have, are thresholded at half the highest
    level. Of a picture with an alpha channel, what is opaque is known.
    Raises: ValueError, one line, if the file is damaged or has colours, if its levels do not tell
    the two kinds of pixels apart, or if a picture with alpha has another mask in its opaque pixels.
    """
    picture = _decoded(path)
    if picture.mode == "RGBA":
        opacity, colours = np.asarray(picture)[..., 3], np.asarray(picture)[..., :3]
        shown = np.unique(colours[opacity > 0], axis=0)
        if len(shown) == 2 or (len(shown) == 1 and shown.min() < 255):
            raise ValueError(
                f"{path} needs white or a picture in its opaque pixels to be a mask by its alpha "
                f"channel; got {_listed(np.unique(shown))}, which may be meant as the mask. Save "
                "it without transparency, white where pixels are known."
            )
        return _lighter(path, opacity, "levels of opacity")
    levels = np.asarray(picture)
    if levels.ndim == 3:
        levels = _grey(path, levels)
    return _lighter(path, levels, "levels")


def _lighter(path: str | os.PathLike, levels: np.ndarray, kind: str) -> Bool[np.ndarray, "h w"]:
    """Where levels (h, w) are the lighter of two. Raises: ValueError if they are not two."""
    values, is_lossy, inside = np.unique(levels), _may_be_lossy(path), None
    if len(values) == 2 and np.isfinite(values).all() and not is_lossy:
        inside = levels == values[1]
    elif is_lossy or (len(values) > 2 and values[0] >= 0 and DARKEST < values[-1] < np.inf):
        inside = _threshold_lossy(path, levels)
    if inside is None or inside.all() or not inside.any():
        raise ValueError(
            f"{path} needs two {kind}, dark where pixels are made up and light where they are "
            f"known; got {_listed(values)}."
        )
    return inside


def _opened(path: str | os.PathLike) -> Image.Image:
    """Decodes a picture: upright, palette resolved. Raises: ValueError if it is transparent."""
    return _opaque(path, _decoded(path))


def _opaque(path: str | os.PathLike, picture: Image.Image) -> Image.Image:
    """The picture. Raises: ValueError if it is transparent."""
    if picture.mode == "RGBA":
        raise ValueError(
            f"{path} needs opaque pixels; got transparent ones. Lay it over a background."
        )
    return picture


def _rgb(path: str | os.PathLike, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of an opaque picture. Raises: ValueError unless they are 8-bit grey or RGB."""
    if picture.mode not in ("1", "L", "RGB"):
        raise ValueError(
            f"{path} needs 8-bit grey or RGB pixels; got mode {picture.mode}. Convert it first, "
            "since its black and white levels are unknown."
        )
    return np.asarray(picture.convert("RGB"))


def _decoded(path: str | os.PathLike) -> Image.Image:
    """Decodes a picture: upright, palette resolved; RGBA if and only if it is transparent."""
    ((_, picture),) = _parts(path, MAX_PIXELS, in_strips=False)
    return picture


def _parts(
    path: str | os.PathLike, max_pixels: int, *, in_strips: bool = True
) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yields strips of a picture, decoded as by `_decoded`, each with the size of the whole."""
    try:
        with open_picture(path) as file:
            stored, num_pages = file.size, _num_pages(file)
            is_16_bit = _loses_16_bits(file)
            if num_pages == 1 and not is_16_bit and stored[0] * stored[1] <= max_pixels:
                size, parts = strips(file) if in_strips else as_one(file)
                for part in parts:
                    yield size, _resolved(part)
    except Exception as error:  # Damaged files make Pillow raise exceptions of many types.
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        reason = why_unreadable(path, error)
        raise ValueError(f"{path} is not a readable picture: {reason}") from None
    require_pixels(path, stored, max_pixels)
    if num_pages > 1:
        raise ValueError(
            f"{path} needs to hold one picture; got {num_pages} pages. Save each to its own file."
        )
    if is_16_bit:
        raise ValueError(f"{path} needs 8 bits per channel; got 16. Convert it first.")


def _resolved(picture: Image.Image) -> Image.Image:
    """A picture without a palette; RGBA if and only if it is transparent."""
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGBA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] == 255:
            picture = picture.convert("RGB")
    return picture


def _may_be_lossy(path: str | os.PathLike) -> bool:
    """Whether a readable picture is a JPEG or a WebP, whatever its name ends in."""
    with open_picture(path) as file:
        return file.format in ("JPEG", "MPO", "WEBP") or file.info.get("compression") == "jpeg"


def _num_pages(file: Image.Image) -> int:
    # A telephone's JPEG may have a second frame: a preview, or the brightness of lights.
    return 1 if file.format == "MPO" else getattr(file, "n_frames", 1)


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
    return _grey(path, levels) if levels.ndim == 3 else levels


def _palette_indices(path: str | os.PathLike) -> np.ndarray | None:
    """Indices (h, w) of a picture with a palette; None for any other file, readable or not."""
    try:
        with open_picture(path) as file:
            return np.asarray(file).astype(np.int64) if file.mode == "P" else None
    except Exception:  # Of many types; whoever reads the levels names the reason.
        return None


def _without(
    path: str | os.PathLike, levels: np.ndarray, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Levels with 0 in the place of `ignore_label`, and where it was; none if it is IGNORED.

    Raises: ValueError for a lossy file, in which no single level can be told.
    """
    if ignore_label == IGNORED:
        return levels, np.zeros(levels.shape, bool)
    if _may_be_lossy(path):
        raise ValueError(
            f"{path} needs exact levels with ignore_label={ignore_label}; it may be lossy. Save it "
            "as PNG."
        )
    ignored = levels == ignore_label
    return np.where(ignored, 0, levels), ignored


def _grey(path: str | os.PathLike, levels: np.ndarray) -> np.ndarray:
    """The channel (h, w) that all of (h, w, c) equal. Raises: ValueError if they do not."""
    if (levels != levels[..., :1]).any():
        raise ValueError(f"{path} needs grey levels to be a mask; got colours.")
    return levels[..., 0]


def _listed(values: np.ndarray) -> str:
    """Count and first of some sorted levels: "17: 0, 1, 2, 3, …"."""
    first = ", ".join(f"{value:g}" for value in values[:4])
    return f"{len(values)}: {first}" + (", …" if len(values) > 4 else "")


def _share_of_specks(levels: np.ndarray) -> float:
    """Fraction of levels (h, w) above 0 that no neighbour has while some neighbour is above 0."""
    inside = levels > 0
    alone, touched = inside.copy(), np.zeros_like(inside)
    for axis in (0, 1):
        for there, here in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            there, here = ((slice(None),) * axis + (part,) for part in (there, here))
            alone[here] &= levels[here] != levels[there]
            touched[here] |= inside[there]
    return float((alone & touched).sum() / max(1, inside.sum()))


def _threshold_lossy(path: str | os.PathLike, levels: np.ndarray) -> np.ndarray:
    """Thresholds (h, w) at half the highest level. Raises: ValueError if that is ambiguous."""
    highest, lowest = levels.max(initial=0), levels.min(initial=255)
    if highest <= DARKEST:
        if highest > lowest:
            raise ValueError(
                f"{path} needs a level above {DARKEST}, or a single level, to be a lossy mask; its "
                f"highest is {highest}, which may be a compression artefact. Save it as PNG, with "
                "two levels."
            )
        return np.zeros(levels.shape, bool)  # Compression may turn black into a small constant.
    share = levels / max(1, highest)
    between = np.mean((share > 0.25) & (share < 0.75))
    if between > LOSSY_GREYS:
        raise ValueError(
            f"{path} needs nearly black and white pixels to be a mask; {between:.0%} of them are "
            f"grey, of levels {_listed(np.unique(levels))}."
        )
    return levels > highest / 2
