# SPDX-License-Identifier: Apache-2.0
"""The VA-file for Bregman distances, a baseline that stores a few bits per coordinate of a point.

A query first scans these approximations, whose cells bound its divergence from below and above,
and then reads rows in the order of their lower bounds until these exceed the k-th distance.
Source: Weber et al. 1998; Zhang et al. 2009, Similarity search on Bregman divergence.
"""

from typing import NamedTuple

import numpy as np

from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index.filters import Nearest
from scorejax.bregman.index.pages import PagedRows, PageReader


class VAFile(NamedTuple):
    space: Sided
    rows: PagedRows
    cells: np.ndarray  # (d, n): the cell of each coordinate
    edges: np.ndarray  # (d, cells, 2): smallest and largest value of a point in the cell
    bits: int

    @property
    def index_bytes(self) -> int:
        """Bytes of the packed approximations, all of which each query reads."""
        return self.cells.size * self.bits // 8


def build(x: np.ndarray, rows: PagedRows, space: Sided, *, bits: int = 4) -> VAFile:
    """The VA-file of the rows, with cells of equal numbers of points, up to ties."""
    num_cells = 2**bits
    cells = np.empty(x.T.shape, np.uint8)
    edges = np.empty((x.shape[1], num_cells, 2))
    for j in range(x.shape[1]):
        column = np.asarray(x[:, j], np.float64)
        inner = np.quantile(column, np.linspace(0, 1, num_cells + 1)[1:-1])
        cells[j] = np.searchsorted(inner, column, side="right")
        for cell in range(num_cells):
            members = column[cells[j] == cell]
            # The edges of an empty cell bound no point, and may be anything.
            if not len(members):
                members = column[:1]
            edges[j, cell] = members.min(), members.max()
    return VAFile(space, rows, cells, edges, bits)


def search(file: VAFile, q: np.ndarray, k: int) -> tuple[Nearest, PageReader]:
    """The exact k nearest rows, and the reader that counted pages and candidates."""
    low, high = file.edges[..., 0], file.edges[..., 1]
    distance = lambda edge: file.space.pointwise(edge, q[:, None])
    # A divergence grows away from the query: smallest at the nearest place, largest at an end.
    least = distance(np.clip(q[:, None], low, high)) * (1 - 1e-9)
    largest = np.maximum(distance(low), distance(high)) * (1 + 1e-9)
    lower, upper = np.zeros((2, file.cells.shape[1]))
    for j, cells in enumerate(file.cells):
        lower += least[j, cells]
        upper += largest[j, cells]
    positions = np.flatnonzero(lower <= np.partition(upper, k - 1)[k - 1])
    positions = positions[np.argsort(lower[positions], kind="stable")]
    reader = PageReader(file.rows)
    nearest = Nearest(k, np.arange(len(lower)))
    start = 0
    while start < len(positions) and lower[positions[start]] <= nearest.bound:
        batch = positions[start : start + max(k, 32)]
        batch = batch[lower[batch] <= nearest.bound]
        nearest.add(batch, file.space.distances(reader.take(batch), q))
        start += max(k, 32)
    return nearest, reader
