# SPDX-License-Identifier: Apache-2.0
"""Opens pictures of up to a number of pixels of the caller's choice, and reads them in strips.

Pillow warns of more than 89 million pixels and refuses twice as many, whatever the memory.

A strip has some `STRIP_PIXELS` pixels. PNG files are decoded strip by strip, unless they are
interlaced or have other than 8 bits a channel; so are TIFF files of 8-bit grey or RGB pixels that
are not compressed or by deflate. Pillow decodes all others, JPEG files among them, as a whole: 4
bytes a pixel of colour, 1 of grey, until the picture is read.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from scorejax.data import png_strips
from scorejax.files import scratch

MAX_PIXELS = 10**9
"""Most pixels of a picture that is read, unless the caller says otherwise."""
STRIP_PIXELS = 2**22
_UNLIMITED = threading.Lock()
_ORIENTATION, _UPRIGHT = 0x0112, 1
_TIFF_COMPRESSIONS = (1, 8, 32946)
"""None, and deflate under its two numbers."""


def open_picture(path: str | os.PathLike) -> ImageFile.ImageFile:
    """Opens a picture of any size without decoding it. Raises: as `PIL.Image.open`."""
    with _unlimited():
        return Image.open(path)


def require_pixels(path: str | os.PathLike, size: tuple[int, int], max_pixels: int) -> None:
    """Raises ValueError, one line, if a picture of `size` has more than `max_pixels` pixels."""
    if size[0] * size[1] > max_pixels:
        raise ValueError(
            f"{path} has {size[0]} x {size[1]} pixels, {size[0] * size[1] / 1e6:.0f} million; at "
            f"most max_pixels={max_pixels} are read. Raise that if the picture is meant to be so "
            "large, or cut it"
        )


def rows_of_strip(width: int) -> int:
    """Rows that a strip of this width has, at least one."""
    return max(1, STRIP_PIXELS // max(1, width))


class Strips(NamedTuple):
    """The size of a picture, (width, height), and its strips from top to bottom."""

    size: tuple[int, int]
    parts: Iterable[Image.Image]


def strips(file: ImageFile.ImageFile) -> Strips:
    """Decodes an open picture, upright, in strips; as one if it is not larger than one.

    Raises: as Pillow does, here or when the strips are read.
    """
    num_rows = rows_of_strip(file.width)
    if file.height <= num_rows:
        return as_one(file)
    parts = None
    if file.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT:
        if file.format == "PNG":
            parts = png_strips.read_strips(file.filename, num_rows)
        elif file.format == "TIFF":
            parts = _tiff_strips(file.filename, num_rows)
    if parts is not None:
        return Strips(file.size, parts)
    size, (whole,) = as_one(file)
    return Strips(size, _cut(whole, rows_of_strip(whole.width)))


def as_one(file: ImageFile.ImageFile) -> Strips:
    """Decodes an open picture, upright, as a single strip. Raises: as Pillow does."""
    if file.format == "TIFF":  # Its size is checked again where the memory is taken.
        with _unlimited():
            file.load_prepare()
    file.load()
    picture = ImageOps.exif_transpose(file)
    return Strips(picture.size, [picture])


@contextlib.contextmanager
def _unlimited() -> Iterator[None]:
    """Lifts Pillow's limit, a global variable, which is the user's outside of the block."""
    with _UNLIMITED:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _cut(picture: Image.Image, num_rows: int) -> Iterator[Image.Image]:
    width, height = picture.size
    for top in range(0, height, num_rows):
        yield picture.crop((0, top, width, min(top + num_rows, height)))


def _tiff_strips(path: str, num_rows: int) -> Iterator[Image.Image] | None:
    """Strips of a TIFF by tifffile, which decodes segment by segment; None if it cannot."""
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        levels = page.dtype == np.uint8 and page.samplesperpixel in (1, 3)
        plain = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        plain = plain and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
        if not (levels and plain and page.compression in _TIFF_COMPRESSIONS):
            return None
        pixels = scratch(page.shape, np.uint8)
        page.asarray(out=pixels, maxworkers=1)
    tops = range(0, len(pixels), num_rows)
    return (Image.fromarray(pixels[top : top + num_rows]) for top in tops)
