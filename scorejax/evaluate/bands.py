# SPDX-License-Identifier: Apache-2.0
"""Divides the regions of a large mask into bands of rows, so that each is in one of them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32
from scipy import ndimage

from scorejax.files import scratch

MARGIN = 16
"""Rows of context above and below the regions of a band."""
PIXELS = 2**24
"""Most pixels of a band."""


class Band(NamedTuple):
    """Rows of a mask, and the regions in them that no other band has, numbered from 1."""

    rows: slice
    regions: Int32[np.ndarray, "rows w"]


def bands(mask: Bool[np.ndarray, "h w"]) -> Iterator[Band]:
    """Yields the 4-connected regions of a mask in bands of at most some `PIXELS` pixels.

    A mask of no more pixels is one band. In a larger one, a region of more than half a band's rows
    is cut into pieces: 610 rows where the mask is 13,400 pixels wide.
    """
    regions = scratch(mask.shape, np.int32)
    num = ndimage.label(mask, output=regions)
    if mask.size <= PIXELS:
        yield Band(slice(0, len(mask)), regions)
        return
    num_rows = max(1, PIXELS // (2 * mask.shape[1]) - MARGIN)
    num = _cut(regions, num, num_rows)
    first, last = _extents(regions, num)
    for top in range(0, len(mask), num_rows):
        ours = np.flatnonzero((first >= top) & (first < top + num_rows))
        if len(ours):
            rows = slice(max(0, top - MARGIN), last[ours].max() + 1 + MARGIN)
            numbers = np.zeros(num + 1, np.int32)
            numbers[ours] = np.arange(1, 1 + len(ours))
            yield Band(rows, numbers[regions[rows]])


def _cut(regions: Int[np.ndarray, "h w"], num: int, num_rows: int) -> int:
    """Cuts regions of more rows, in place; returns the highest number."""
    first, last = _extents(regions, num)
    tall = last - first >= num_rows
    if tall.any():
        for top in range(0, len(regions), num_rows):
            rows = regions[top : top + num_rows]
            inside = tall[rows]
            pieces, num_pieces = ndimage.label(inside)
            rows[inside] = pieces[inside] + num
            num += num_pieces
    return num


def _extents(
    regions: Int[np.ndarray, "h w"], num: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """First and last row of each number; -1 for 0, which is no region, and for those not there."""
    first, last = np.full((2, num + 1), -1)
    for row, numbers in enumerate(regions):
        last[numbers] = row
    for row in range(len(regions) - 1, -1, -1):
        first[regions[row]] = row
    first[0] = last[0] = -1
    return first, last
