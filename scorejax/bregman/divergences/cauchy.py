# SPDX-License-Identifier: Apache-2.0
"""Bounds of a Bregman divergence by the Cauchy inequality, part by part of the coordinates.

For any two places m and w, D(x, q) = D(x, w) + D(m, q) - D(m, w) + <u, v> with u = affine(x) -
affine(m) and v = slope(w) - slope(q), and |<u, v>| <= |u| |v|. A point so enters a bound with two
numbers a part, which are computed once. The bound of arXiv:2006.00227 is the case without m and w
("none"). The choice of (m, w), the gauge, is not in the paper. Where points lie above m and queries
below w ("corner"), the bound is exact for parts of one coordinate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scorejax.bregman.divergences.sided import Sided
from scorejax.choices import require_known

GAUGES = ("none", "mean", "corner")
ROUNDING = 1e-12
"""Relative error allowed for a float64 sum of up to thousands of terms, relative to their sizes."""

Parts = Sequence[Int[np.ndarray, "_"]]


class Gauge(NamedTuple):
    """The places m (origin) and w (anchor) of the bounds; both are unused for the name "none"."""

    name: str
    origin: Float[np.ndarray, "d"]
    anchor: Float[np.ndarray, "d"]

    def take(self, columns: Int[np.ndarray, "p"]) -> "Gauge":
        """The gauge of some coordinates only."""
        return Gauge(self.name, self.origin[columns], self.anchor[columns])


class PointTuples(NamedTuple):
    """The two numbers of each point and part from which its bounds are computed."""

    values: Float[np.ndarray, "n parts 2"]
    """The term that depends on the point alone, and |u|."""
    sizes: Float[np.ndarray, "2 parts"]
    """Maxima over points to which rounding is relative: the sum of absolute values in the term, and
    the length of the terms whose difference is u."""


class QueryTerms(NamedTuple):
    """The query's side of the bounds, coordinate by coordinate."""

    terms: Float[np.ndarray, "2 *m d"]
    """Two terms, of which the bounds use the sum."""
    vector: Float[np.ndarray, "*m d"]
    extents: Float[np.ndarray, "*m d"]
    """Sizes of the two terms whose difference is the vector."""


class QueryTuple(NamedTuple):
    """The query's side of the bounds, part by part: its term, |v|, and the sizes of rounding."""

    terms: Float[np.ndarray, "parts"]
    norms: Float[np.ndarray, "parts"]
    extents: Float[np.ndarray, "parts"]
    """Size to which the rounding of v is relative; it enters the bound multiplied by |u|."""
    sizes: Float[np.ndarray, "parts"]
    """Size to which all other rounding is relative, except that of |u| |v|."""


class Bounds(NamedTuple):
    """Bounds of the divergence of each point from a query, part by part."""

    upper: Float[np.ndarray, "*n parts"]
    lower: Float[np.ndarray, "*n parts"]


@np.errstate(all="ignore")
def gauge_of(space: Sided, x: Float[np.ndarray, "n d"], name: str) -> Gauge:
    """The gauge of that name for the points x. Raises: ValueError for an unknown name."""
    require_known("gauge", name, GAUGES)
    if name == "none":
        return Gauge(name, *np.zeros((2, x.shape[1])))
    origin = space.from_affine(space.affine(x).mean(axis=0)) if name == "mean" else x.min(axis=0)
    anchor = origin if name == "mean" else x.max(axis=0)
    origin = _where_finite(space.affine, origin, x, space)
    return Gauge(name, origin, _where_finite(space.slope, anchor, x, space))


def point_terms(
    space: Sided, gauge: Gauge, x: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """The terms that depend on points alone, and the vectors u, coordinate by coordinate."""
    none = gauge.name == "none"
    terms = space.potential(x) if none else space.pointwise(x, gauge.anchor)
    return terms, point_vectors(space, gauge, x)


def point_vectors(
    space: Sided, gauge: Gauge, x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n d"]:
    """The vectors u of points."""
    if gauge.name == "none":
        return space.affine(x)
    return space.affine(x) - space.affine(gauge.origin)


def vector_extents(
    space: Sided, gauge: Gauge, x: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n"]:
    """Lengths of the two terms whose difference is u; zero for the gauge "none"."""
    if gauge.name == "none":
        return np.zeros(len(x))
    return norm(np.abs(space.affine(x)) + np.abs(space.affine(gauge.origin)))


def query_terms(space: Sided, gauge: Gauge, q: Float[np.ndarray, "*m d"]) -> QueryTerms:
    """The query's side of the bounds. `q` may hold m queries, if the gauge holds as many places."""
    if gauge.name == "none":
        terms = space.copotential(q)
        zeros = np.zeros_like(terms)
        return QueryTerms(np.stack([terms, zeros]), -space.slope(q), zeros)
    terms = np.stack(
        [space.pointwise(gauge.origin, q), -space.pointwise(gauge.origin, gauge.anchor)]
    )
    anchor, slope = space.slope(gauge.anchor), space.slope(q)
    return QueryTerms(terms, anchor - slope, np.abs(anchor) + np.abs(slope))


@np.errstate(all="ignore")
def point_tuples(space: Sided, gauge: Gauge, x: Float[np.ndarray, "n d"], parts: Parts):
    """The tuples of points, 4096 rows at a time."""
    values, sizes = np.empty((len(x), len(parts), 2)), np.zeros((2, len(parts)))
    for start in range(0, len(x), 4096):
        block = slice(start, start + 4096)
        rows = np.asarray(x[block], np.float64)
        terms, u = point_terms(space, gauge, rows)
        for i, part in enumerate(parts):
            values[block, i, 0] = terms[:, part].sum(axis=1)
            values[block, i, 1] = norm(u[:, part])
            extents = vector_extents(space, gauge.take(part), rows[:, part])
            size = np.abs(terms[:, part]).sum(axis=1).max(), extents.max()
            sizes[:, i] = np.maximum(sizes[:, i], size)
    return PointTuples(values, sizes)


@np.errstate(all="ignore")
def query_tuple(
    space: Sided, gauge: Gauge, q: Float[np.ndarray, "d"], parts: Parts, points: PointTuples
) -> QueryTuple:
    """The tuple of a query."""
    terms, v, extents = query_terms(space, gauge, q)
    by_part = lambda function: np.array([function(part) for part in parts])
    norms = by_part(lambda part: norm(v[part]))
    extents = by_part(lambda part: norm(extents[part]))
    size = by_part(lambda part: np.abs(terms[:, part]).sum())
    size += points.sizes[0] + points.sizes[1] * (norms + extents)
    return QueryTuple(by_part(lambda part: terms[:, part].sum()), norms, extents, size)


@np.errstate(all="ignore")
def bounds(points: Float[np.ndarray, "*n parts 2"], query: QueryTuple) -> Bounds:
    """Upper and lower bounds of the divergence in each part, valid despite rounding.

    A bound that overflows becomes trivial: infinity above, zero below.
    """
    middle = points[..., 0] + query.terms
    reach = points[..., 1] * query.norms
    rounding = ROUNDING * (query.sizes + reach + points[..., 1] * query.extents)
    upper = middle + reach + rounding
    lower = middle - reach - rounding
    upper = np.maximum(np.where(np.isnan(upper), np.inf, upper), 0)
    return Bounds(upper, np.where(lower > 0, lower, 0.0))


def norm(v: Float[np.ndarray, "*n p"]) -> Float[np.ndarray | np.float64, "*n"]:
    """Euclidean norms over the last axis, scaled so that no square overflows."""
    largest = np.abs(v).max(axis=-1, initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum((v / scale[..., None]) ** 2, axis=-1))


def _where_finite(function, place: np.ndarray, x: np.ndarray, space: Sided) -> np.ndarray:
    """The place, with coordinates at which the function is not finite moved to a point's.

    That is the largest coordinate of a point at which the function is finite.
    """
    values = np.where(np.isfinite(function(x)), x, -np.inf).max(axis=0)
    inside = np.where(np.isfinite(values), values, space.divergence.queries.interior())
    return np.where(np.isfinite(function(place)), place, inside)
