# SPDX-License-Identifier: Apache-2.0
"""Bregman distances as one matrix product in single precision, with a bound on what it loses.

For any centre m, D(x, q) = D(x, m) + D(m, q) - <x - m, phi'(q) - phi'(m)>, and
D(q, x) = D(m, x) + D(q, m) - <phi'(x) - phi'(m), q - m>. So each point has a vector and a height,
each query a vector and an offset, and

    distance = height - <vector, query vector> + offset.

The raw form phi(x) - <x, phi'(q)> has terms as large as phi; here they are as small as the spread
of the data about m, in which the product is then exact to 24 bits.
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

    def measured(self, coordinates: Float[np.ndarray, "b d"]) -> "Frame":
        """The frame with units that are large enough for these points too."""
        vectors, origin = self._point_vectors(coordinates)
        largest = lambda norms: np.max(norms, initial=0.0)
        with np.errstate(all="ignore"):
            return dataclasses.replace(
                self,
                radius=_larger(self.radius, largest(np.linalg.norm(vectors - origin, axis=1))),
                height=_larger(self.height, largest(self.heights(coordinates))),
                extent=_larger(
                    self.extent, np.linalg.norm(origin) + largest(np.linalg.norm(vectors, axis=1))
                ),
            )

    def query_form(self, coordinates: Float[np.ndarray, "q d"]) -> QueryForm:
        """The forms of queries, with a bound on the rounding of their scores."""
        gradient, dim = self.divergence.gradient, coordinates.shape[1]
        first = (self.centre, coordinates) if self.points_first else (coordinates, self.centre)
        with np.errstate(all="ignore"):
            offsets = self.divergence.pointwise(*first).sum(axis=-1)
            raw, origin = coordinates, self.centre
            if self.points_first:
                raw, origin = gradient(raw), gradient(origin)
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
        if self.points_first:
            return coordinates, self.centre
        return self.divergence.gradient(coordinates), self.divergence.gradient(self.centre)


def _larger(a: float, b: float) -> float:
    """The larger of two numbers, and NaN if one is NaN, which built-in `max` may drop."""
    return float(np.maximum(a, b))


def frame_about_mean(
    divergence: Divergence, coordinates: Float[np.ndarray, "b d"], *, points_first: bool
) -> Frame:
    """The frame whose centre is the mean of the points' vectors; its units are not `measured` yet.

    Any centre within the domain is correct; this one makes the vectors short.
    """
    with np.errstate(all="ignore"):
        if points_first:
            centre = coordinates.mean(axis=0)
        else:
            centre = divergence.inverse_gradient(divergence.gradient(coordinates).mean(axis=0))
        inside = divergence.queries.contains(centre)
        inside &= np.isfinite(divergence.phi(centre) + divergence.gradient(centre))
    centre = np.where(inside, centre, divergence.queries.interior())
    return Frame(divergence, points_first, centre)
