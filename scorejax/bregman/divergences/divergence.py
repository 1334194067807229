# SPDX-License-Identifier: Apache-2.0
"""Bregman divergences that are sums over coordinates, in forms that keep their digits.

A convex phi gives D(x, y) = sum_j phi(x_j) - phi(y_j) - phi'(y_j) (x_j - y_j): how far phi at x
lies above its tangent at y. It is zero for x = y only, is no metric, and its arguments may not be
swapped: x is the point and y the query, unless side="query_first" says otherwise. The textbook form
loses all digits where x is close to y; `pointwise` does not. Every function takes NumPy or JAX
arrays and answers in kind.
Source: arXiv:2006.00227, Section 3; the table is in docs/papers/brepartition.md.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scorejax.bregman.divergences import generators as g
from scorejax.bregman.divergences.domain import (
    REAL,
    Interval,
    check_rows,
    check_sums,
)
from scorejax.choices import choose

Elementwise = Callable[[Any], Any]
SIDES = ("data_first", "query_first")


@dataclasses.dataclass(frozen=True, eq=False)
class Divergence:
    """A separable Bregman divergence; the functions act on each coordinate, the methods on rows.

    They act on the coordinates that `transform` makes of what the caller has (`coordinates`), so
    that Mahalanobis is squared Euclidean in whitened coordinates and may be cut into parts like any
    other. An index stores name and options; `get(name, **options)` is then the same divergence.
    """

    name: str
    phi: Elementwise
    gradient: Elementwise
    inverse_gradient: Elementwise
    pointwise: Callable[[Any, Any], Any]
    """d_phi(x, y) of each coordinate, x the first argument; never negative."""
    points: Interval = REAL
    """Where the first argument may lie."""
    queries: Interval = REAL
    """Where the second argument may lie: phi must have a finite slope there."""
    transform: Elementwise | None = None
    sums_to_one: bool = False
    num_columns: int | None = None
    """Of points and queries, if only so many can be."""
    remedy: str = ""
    """What to do about entries outside the domain."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def coordinates(self, x: Float[ArrayLike, "*n d"]) -> Float[ArrayLike, "*n d"]:
        """The coordinates in which the divergence is a sum: x itself for most."""
        return x if self.transform is None else self.transform(x)

    def divergence(
        self, x: Float[ArrayLike, "*#n d"], y: Float[ArrayLike, "*#n d"]
    ) -> Float[ArrayLike, "*#n"]:
        """D(x, y) over the last axis; leading axes broadcast. NumPy input is taken to float64.

        Infinite where numbers overflow to NaN.
        """
        xp = g.namespace(x, y)
        if xp is np:
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return row_sums(self.pointwise(self.coordinates(x), self.coordinates(y)))

    def check_points(
        self, x: ArrayLike, *, side: str = "data_first", first_row: int = 0
    ) -> Float[np.ndarray, "n d"]:
        """The points as an array; first_row is the number of x[0], for the message.

        Raises: ValueError, one line, unless (n, d) and in the domain.
        """
        domain = self.points if points_come_first(side) else self.queries
        return self._check("points", x, domain, first_row)

    def check_queries(self, y: ArrayLike, *, side: str = "data_first") -> Float[np.ndarray, "n d"]:
        """The queries as an array. Raises: as `check_points`."""
        return self._check("queries", y, self.queries if points_come_first(side) else self.points)

    def dual(self) -> "Divergence":
        """The divergence D* of the convex conjugate: D(x, y) = D*(phi'(y), phi'(x)).

        It acts on gradients of `coordinates`, and has no transform of its own. An index of D* on
        phi'(points) therefore answers queries with side="query_first".
        """
        return Divergence(
            name=f"dual of {self.name}",
            phi=functools.partial(g.conjugate, self.phi, self.inverse_gradient),
            gradient=self.inverse_gradient,
            inverse_gradient=self.gradient,
            pointwise=functools.partial(g.dual_pointwise, self.pointwise, self.inverse_gradient),
            points=self.queries.image(self.gradient),
            queries=self.points.image(self.gradient),
        )

    def _check(self, what: str, x: ArrayLike, domain: Interval, first_row: int = 0) -> np.ndarray:
        rows = check_rows(self.name, what, x, domain, first_row, self.remedy)
        if self.num_columns not in (None, rows.shape[1]):
            raise ValueError(
                f"{self.name} with these options needs {what} of {self.num_columns} columns; "
                f"got {rows.shape[1]}."
            )
        if self.sums_to_one:
            check_sums(self.name, what, rows, first_row)
        return rows


@g.quiet
def row_sums(parts: Float[ArrayLike, "*n d"]) -> Float[ArrayLike, "*n"]:
    """Sums over the last axis; what overflowed to NaN is infinite, and so has a place in order."""
    xp = g.namespace(parts)
    sums = xp.sum(parts, axis=-1)
    return xp.where(xp.isnan(sums), np.inf, sums)[()]


def points_come_first(side: str) -> bool:
    """Whether points are the first argument. Raises: ValueError for an unknown side."""
    return choose("side", side, {"data_first": True, "query_first": False})
