# SPDX-License-Identifier: Apache-2.0
"""The index itself: rows on pages, the tuples of points, and a tree for each part."""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real, UInt

from scorejax.bregman.divergences.cauchy import Gauge, PointTuples
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index.ball_tree import Tree
from scorejax.bregman.index.pages import PagedRows

FINGERPRINTED = 4096
"""Positions whose points' numbers count in the fingerprint of an index."""


class Shares(NamedTuple):
    """Shares that the filter of summed bounds leaves, measured with some points as queries."""

    k: Int[np.ndarray, "s"]
    candidates: Float[np.ndarray, "s"]
    """Mean share of the points that are candidates."""
    pages: Float[np.ndarray, "s"]
    """Mean share of the pages that are read."""

    def at(self, k: int) -> tuple[float, float]:
        """Both shares, interpolated in log k; beyond the largest measured k they grow like k."""
        where, beyond = np.log(self.k), max(1.0, k / self.k[-1])
        shares = (np.interp(np.log(k), where, y) for y in (self.candidates, self.pages))
        return tuple(min(1.0, beyond * float(share)) for share in shares)


@dataclasses.dataclass(frozen=True, eq=False)
class BregmanIndex:
    """An index in memory or on disk, which searches never change.

    Any number of threads and processes may share it. Rows are kept in the divergence's coordinates.
    The position of a point is its place in the order of the first tree's leaves.
    """

    space: Sided
    parts: tuple[Int[np.ndarray, "_"], ...]
    gauge: Gauge
    trees: tuple[Tree, ...]
    leaves: UInt[np.ndarray, "parts n"]
    """The leaf of each part's tree that holds a position; ascending for the first part."""
    tuples: PointTuples
    rows: PagedRows
    ids: Int[np.ndarray, "n"]
    moments: Float[np.ndarray, "rows d"]
    """Mean (first row) and covariance of the vectors u of a sample of points."""
    page_bytes: int
    leaf_size: int
    shares: Shares | None = None
    path: str | None = None
    columns: tuple[str, ...] | None = None
    """Names of the coordinates, if the points had any."""

    @property
    def num_points(self) -> int:
        """Number of points in the index."""
        return len(self.ids)

    @property
    def num_columns(self) -> int:
        """Number of coordinates of a point."""
        return len(self.gauge.origin)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the settings, the parts, a sample of the points and the order of the first.

        Indexes of other points, or built otherwise, have another one; a copy on disk has the same.
        """
        settings = (self.space.divergence.name, self.space.side, self.num_points, self.leaf_size)
        digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        some = self.ids[:FINGERPRINTED]
        for array in (*self.parts, self.gauge.origin, self.moments, some):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def coordinates(self, queries: Real[np.ndarray, "q d"]) -> Float[np.ndarray, "q d"]:
        """Coordinates of queries, in float64. Raises: ValueError unless they fit the index."""
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
