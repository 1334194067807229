# SPDX-License-Identifier: Apache-2.0
"""The VA-file for Bregman distances, a baseline: every point by a few bits a coordinate.

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
        """Of the approximations, packed: what each query reads of them."""
        return self.cells.size * self.bits // 8


def build(x: np.ndarray, rows: PagedRows, space: Sided, *, bits: int = 4) -> VAFile:
    """Cells with equal numbers of points, as far as ties let them."""
    num_cells = 2**bits
    cells = np.empty(x.T.shape, np.uint8)
    edges = np.empty((x.shape[1], num_cells, 2))
    for j in range(x.shape[1]):
        column = np.asarray(x[:, j], np.float64)
        inner = np.quantile(column, np.linspace(0, 1, num_cells + 1)[1:-1])
        cells[j] = np.searchsorted(inner, column, side="right")
        for cell in range(num_cells):
            own = column[cells[j] == cell]
            # An empty cell has no point, and so no bound to be wrong.
            edges[j, cell] = (own.min(), own.max()) if len(own) else column[:1].repeat(2)
    return VAFile(space, rows, cells, edges, bits)


def search(file: VAFile, q: np.ndarray, k: int) -> tuple[Nearest, PageReader]:
    """The k nearest rows, exact, and what was read for them."""
    low, high = file.edges[..., 0], file.edges[..., 1]
    own = lambda edge: file.space.pointwise(edge, q[:, None])
    # A divergence grows away from the query: least at the nearest place, largest at an end.
    least = own(np.clip(q[:, None], low, high)) * (1 - 1e-9)
    largest = np.maximum(own(low), own(high)) * (1 + 1e-9)
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
