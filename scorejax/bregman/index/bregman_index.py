# SPDX-License-Identifier: Apache-2.0
"""What an index is made of: rows on pages, their tuples, a tree for each part."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, UInt

from scorejax.bregman.divergences.cauchy import Gauge, PointTuples
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index.ball_tree import Tree
from scorejax.bregman.index.pages import PagedRows


class Shares(NamedTuple):
    """What the filter of summed bounds leaves, measured on some points taken for queries."""

    k: Int[np.ndarray, "s"]
    candidates: Float[np.ndarray, "s"]
    """Mean share of the points."""
    pages: Float[np.ndarray, "s"]
    """Mean share of the pages."""

    def at(self, k: int) -> tuple[float, float]:
        """Both shares, interpolated in log k; beyond what was measured they grow as k does."""
        where, beyond = np.log(self.k), max(1.0, k / self.k[-1])
        found = (np.interp(np.log(k), where, y) for y in (self.candidates, self.pages))
        return tuple(min(1.0, beyond * float(share)) for share in found)


@dataclasses.dataclass(frozen=True, eq=False)
class BregmanIndex:
    """An index in memory or on disk; a position is the place of a point in the order of leaves.

    Rows are kept in the divergence's coordinates. Nothing in it is changed by a search, so that
    any number of threads and processes may share it.
    """

    space: Sided
    parts: tuple[Int[np.ndarray, "_"], ...]
    gauge: Gauge
    trees: tuple[Tree, ...]
    leaves: UInt[np.ndarray, "parts n"]
    """The leaf of each part's tree in which a position is; ascending for the first."""
    tuples: PointTuples
    rows: PagedRows
    ids: Int[np.ndarray, "n"]
    moments: Float[np.ndarray, "rows d"]
    """Mean and covariance of the points' vectors u, of a sample of them."""
    page_bytes: int
    leaf_size: int
    shares: Shares | None = None
    path: str | None = None

    @property
    def num_points(self) -> int:
        """Points in the index."""
        return len(self.ids)

    @property
    def num_columns(self) -> int:
        """Coordinates of a point."""
        return len(self.gauge.origin)

    def coordinates(self, queries: Real[np.ndarray, "q d"]) -> Float[np.ndarray, "q d"]:
        """Checked queries as coordinates. Raises: ValueError unless they fit the index."""
        checked = self.space.divergence.check_queries(queries, side=self.space.side)
        if checked.shape[1] != self.num_columns:
            raise ValueError(
                f"queries need {self.num_columns} columns, as the index has; "
                f"got {checked.shape[1]}."
            )
        return np.asarray(self.space.divergence.coordinates(checked.astype(np.float64)))

    def with_shares(self, shares: Shares) -> "BregmanIndex":
        """The same index, with these shares."""
        return dataclasses.replace(self, shares=shares)
