# SPDX-License-Identifier: Apache-2.0
"""Bregman distances as one matrix product in single precision, with a bound on what it loses.

For any centre m, D(x, q) = D(x, m) + D(m, q) - <x - m, phi'(q) - phi'(m)>, and
D(q, x) = D(m, x) + D(q, m) - <phi'(x) - phi'(m), q - m>. So each point has a vector and a height,
each query a vector and an offset, and

    distance = height - <vector, query vector> + offset.

The raw form phi(x) - <x, phi'(q)> has terms as large as phi; here they are as small as the spread
of the data about m, in which the product is then exact to 24 bits. Columns of unequal spread are
balanced: <c v, w / c> is the same product, and exactly so for powers of two.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.bregman.divergences.divergence import Divergence

UNIT_32, UNIT_64 = 2.0**-24, 2.0**-52
TINY = 1e-30
"""Least weight of a height, in units of a score: padding of infinite height then stays last."""
MOST_EXPONENT = 100
"""Largest power of two that balances a column: far from overflow, and from underflow."""


class QueryForm(NamedTuple):
    """Queries in the form of the product, and the distance that a score stands for.

    With score = h * heights - <vectors, query vectors>, the distance is scales * score + offsets to
    within `slack`. That covers the score in float32, for any order of summation, and the distance
    in float64 by `pointwise`.
    """

    vectors: Float[np.ndarray, "q d"]
    heights: Float[np.ndarray, "q"]
    scales: Float[np.ndarray, "q"]
    offsets: Float[np.ndarray, "q"]
    slack: Float[np.ndarray, "q"]

    def take(self, numbers: Int[np.ndarray, "b"]) -> "QueryForm":
        """The forms of some of the queries."""
        return QueryForm(*(field[numbers] for field in self))

    def tiles(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields vectors and heights of `size` queries at a time; the last tile repeats some."""
        for start in range(0, len(self.scales), size):
            numbers = np.arange(start, start + size) % len(self.scales)
            yield self.vectors[numbers], self.heights[numbers]

    def representable(self) -> Bool[np.ndarray, "q"]:
        """Whether all numbers of a query are finite; otherwise its slack bounds nothing."""
        return np.isfinite(self.scales + self.offsets + self.slack) & np.isfinite(self.vectors).all(
            axis=1
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A centre m, and units in which vectors are at most one long and heights at most one."""

    divergence: Divergence
    points_first: bool
    centre: Float[np.ndarray, "d"]
    column_scales: Float[np.ndarray, "d"] | float = 1.0
    """Powers of two that multiply vectors of points, and divide those of queries."""
    radius: float = np.finfo(np.float64).tiny
    height: float = np.finfo(np.float64).tiny
    extent: float = 0.0
    """Largest length of a vector plus that of the centre: the scale of rounding in differences."""

    def point_form(
        self, coordinates: Float[np.ndarray, "b d"]
    ) -> tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b"]]:
        """Vectors and heights of points in float64, in the units of the frame."""
        vectors, origin = self._point_vectors(coordinates)
        return (vectors - origin) / self.radius, self.heights(coordinates) / self.height

    def heights(self, coordinates: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b"]:
        """D(x, m), or D(m, x) if queries are the first argument."""
        pair = (coordinates, self.centre) if self.points_first else (self.centre, coordinates)
        return self.divergence.pointwise(*pair).sum(axis=-1)

    def sizes(self, coordinates: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "3 b"]:
        """Lengths of the points' vectors, heights, and lengths without a centre; NaN is inf."""
        with np.errstate(all="ignore"):
            vectors, origin = self._point_vectors(coordinates)
            lengths, norms = (np.linalg.norm(v, axis=1) for v in (vectors - origin, vectors))
            sizes = np.stack([lengths, self.heights(coordinates), norms])
        return np.where(np.isnan(sizes), np.inf, sizes)

    def in_units_of(self, sizes: Float[np.ndarray, "3"]) -> "Frame":
        """The frame with units for points of at most these `sizes`."""
        tiny = np.finfo(np.float64).tiny
        radius, height, norm = (max(tiny, float(size)) for size in sizes)
        with np.errstate(all="ignore"):
            _, origin = self._point_vectors(self.centre[None])
            extent = float(np.linalg.norm(origin)) + norm
        return dataclasses.replace(self, radius=radius, height=height, extent=extent)

    def query_form(self, coordinates: Float[np.ndarray, "q d"]) -> QueryForm:
        """The forms of queries, with a bound on the rounding of their scores."""
        gradient, dim = self.divergence.gradient, coordinates.shape[1]
        first = (self.centre, coordinates) if self.points_first else (coordinates, self.centre)
        with np.errstate(all="ignore"):
            offsets = self.divergence.pointwise(*first).sum(axis=-1)
            raw, origin = coordinates, self.centre
            if self.points_first:
                raw, origin = gradient(raw), gradient(origin)
            raw, origin = raw / self.column_scales, origin / self.column_scales
            lengths = np.linalg.norm(raw - origin, axis=1)
            scales = np.maximum(self.radius * lengths, self.height)
            vectors = (raw - origin) * (self.radius / scales)[:, None]
            heights = np.maximum(self.height / scales, TINY)
            # Sums of d products round by at most (d + 4) units of |v| |w|, see Higham, Accuracy and
            # Stability of Numerical Algorithms, Section 3.1; three more for the height's.
            single = UNIT_32 * ((dim + 6) * self.radius * lengths + 6 * heights * scales)
            # Underflow, where subnormal numbers are flushed to zero.
            flushed = (dim + 1) * 2 * TINY * scales
            # Differences round relative to their terms; distances to a few units each term.
            terms = self.extent * lengths + self.radius * np.linalg.norm(raw, axis=1)
            terms += self.radius * np.linalg.norm(origin)
            double = (dim + 16) * UNIT_64 * (2 * (scales + np.abs(offsets)) + terms)
            slack = 1.01 * (single + flushed + double)
            return QueryForm(
                vectors.astype(np.float32), heights.astype(np.float32), scales, offsets, slack
            )

    def representable(self) -> bool:
        """Whether the units are finite."""
        return bool(np.isfinite(self.radius + self.height + self.extent))

    def _point_vectors(self, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        vectors, origin = coordinates, self.centre
        if not self.points_first:
            vectors, origin = (self.divergence.gradient(v) for v in (vectors, origin))
        return vectors * self.column_scales, origin * self.column_scales


def frame_about_mean(
    divergence: Divergence, coordinates: Float[np.ndarray, "b d"], *, points_first: bool
) -> Frame:
    """The frame whose centre is the mean of the points' vectors; it has no units yet.

    Any centre within the domain is correct; this one makes the vectors short. Column scales are for
    queries that are like the points.
    """
    with np.errstate(all="ignore"):
        gradients = divergence.gradient(coordinates)
        if points_first:
            centre = coordinates.mean(axis=0)
            column_scales = _balancing(coordinates, gradients)
        else:
            centre = divergence.inverse_gradient(gradients.mean(axis=0))
            column_scales = _balancing(gradients, coordinates)
        inside = divergence.queries.contains(centre)
        inside &= np.isfinite(divergence.phi(centre) + divergence.gradient(centre))
    centre = np.where(inside, centre, divergence.queries.interior())
    return Frame(divergence, points_first, centre, column_scales)


def _balancing(
    vectors: Float[np.ndarray, "b d"], of_queries: Float[np.ndarray, "b d"]
) -> Float[np.ndarray, "d"]:
    """Powers of two c for which c v and w / c spread alike in each column; 1 where one does not."""
    # Mean absolute deviations, on which a single row has little weight.
    spreads = [np.abs(v - v.mean(axis=0)).mean(axis=0) for v in (vectors, of_queries)]
    exponents = np.round((np.log2(spreads[1]) - np.log2(spreads[0])) / 2)
    exponents = np.clip(exponents, -MOST_EXPONENT, MOST_EXPONENT)
    return np.exp2(np.where(np.isfinite(exponents), exponents, 0.0))
