# SPDX-License-Identifier: Apache-2.0
"""Bounds of a Bregman divergence by the Cauchy inequality, part by part of the coordinates.

For any two places m and w, D(x, q) = D(x, w) + D(m, q) - D(m, w) + <u, v> with u = affine(x) -
affine(m) and v = slope(w) - slope(q), and |<u, v>| <= |u| |v|. A point so enters a bound with two
numbers a part, which are computed once: the bound of arXiv:2006.00227 is the case without m and w
("none"). The freedom in them, the gauge, is not in the paper; where points lie above m and queries
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
"""Share of the sizes of all terms that a sum of up to thousands of them in float64 may be off."""

Parts = Sequence[Int[np.ndarray, "_"]]


class Gauge(NamedTuple):
    """The two places m and w of the bounds; neither is looked at if the name is "none"."""

    name: str
    origin: Float[np.ndarray, "d"]
    anchor: Float[np.ndarray, "d"]

    def take(self, columns: Int[np.ndarray, "p"]) -> "Gauge":
        """Of some coordinates only."""
        return Gauge(self.name, self.origin[columns], self.anchor[columns])


class PointTuples(NamedTuple):
    """What bounds need of points."""

    values: Float[np.ndarray, "n parts 2"]
    """The term of the point, and |u|."""
    sizes: Float[np.ndarray, "2 parts"]
    """Largest over points: the sum of absolute values that its term is made of, and the length of
    what its vector is the difference of. Rounding is relative to these."""


class QueryTerms(NamedTuple):
    """What a divergence needs of a query, coordinate by coordinate."""

    terms: Float[np.ndarray, "2 *m d"]
    """Two terms whose sum counts."""
    vector: Float[np.ndarray, "*m d"]
    extents: Float[np.ndarray, "*m d"]
    """The sizes of what the vector is the difference of."""


class QueryTuple(NamedTuple):
    """What bounds need of a query, part by part: its term, |v|, and the sizes of rounding."""

    terms: Float[np.ndarray, "parts"]
    norms: Float[np.ndarray, "parts"]
    extents: Float[np.ndarray, "parts"]
    """Relative to this, the rounding of v: it counts as often as |u|."""
    sizes: Float[np.ndarray, "parts"]
    """Relative to this, all other rounding but that of |u| |v|."""


class Bounds(NamedTuple):
    """Of the divergence of each point from a query, part by part."""

    upper: Float[np.ndarray, "*n parts"]
    lower: Float[np.ndarray, "*n parts"]


@np.errstate(all="ignore")
def make_gauge(space: Sided, x: Float[np.ndarray, "n d"], name: str) -> Gauge:
    """The gauge of that name for points. Raises: ValueError for an unknown name."""
    require_known("gauge", name, GAUGES)
    if name == "none":
        return Gauge(name, *np.zeros((2, x.shape[1])))
    origin = space.from_affine(space.affine(x).mean(axis=0)) if name == "mean" else x.min(axis=0)
    anchor = origin if name == "mean" else x.max(axis=0)
    return Gauge(name, _where_finite(space.affine, origin, x, space), _anchor(space, anchor, x))


def point_terms(
    space: Sided, gauge: Gauge, x: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """The term of points alone, coordinate by coordinate, and their vectors u."""
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
    """Lengths of what the vectors u are differences of; zero if they are none."""
    if gauge.name == "none":
        return np.zeros(len(x))
    return norm(np.abs(space.affine(x)) + np.abs(space.affine(gauge.origin)))


def query_terms(space: Sided, gauge: Gauge, q: Float[np.ndarray, "*m d"]) -> QueryTerms:
    """What a divergence in this gauge needs of a query, or of many; then the gauge is as large."""
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
    """Upper and lower bounds of the divergence in each part, safe against rounding.

    What overflows bounds nothing: infinity above, zero below.
    """
    middle = points[..., 0] + query.terms
    reach = points[..., 1] * query.norms
    rounding = ROUNDING * (query.sizes + reach + points[..., 1] * query.extents)
    upper = middle + reach + rounding
    lower = middle - reach - rounding
    upper = np.maximum(np.where(np.isnan(upper), np.inf, upper), 0)
    return Bounds(upper, np.where(lower > 0, lower, 0.0))


def norm(v: Float[np.ndarray, "*n p"]) -> Float[np.ndarray | np.float64, "*n"]:
    """Euclidean norms, of which no square overflows."""
    largest = np.abs(v).max(axis=-1, initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum((v / scale[..., None]) ** 2, axis=-1))


def _anchor(space: Sided, anchor: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _where_finite(space.slope, anchor, x, space)


def _where_finite(function, place: np.ndarray, x: np.ndarray, space: Sided) -> np.ndarray:
    """The place, moved where the function is not finite to the largest point at which it is."""
    values = np.where(np.isfinite(function(x)), x, -np.inf).max(axis=0)
    inside = np.where(np.isfinite(values), values, space.divergence.queries.interior())
    return np.where(np.isfinite(function(place)), place, inside)
