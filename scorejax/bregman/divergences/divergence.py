# SPDX-License-Identifier: Apache-2.0
"""The type of a Bregman divergence that is a sum over coordinates.

A convex phi gives D(x, y) = sum_j phi(x_j) - phi(y_j) - phi'(y_j) (x_j - y_j): how far phi at x
lies above its tangent at y. It is zero only for x = y. It is no metric, and not symmetric: x is the
point and y the query, unless side="query_first". The textbook form loses all digits where x is
close to y; `pointwise` keeps them. Every function takes NumPy or JAX arrays and returns the same
kind.
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
    """A separable Bregman divergence: functions of each coordinate, and methods of rows.

    The functions act on `coordinates`, to which `transform` maps the caller's rows. Mahalanobis is
    thus squared Euclidean in whitened coordinates, and can be cut into parts like any other. An
    index stores name and options, from which `get(name, **options)` makes the divergence again.
    """

    name: str
    phi: Elementwise
    gradient: Elementwise
    inverse_gradient: Elementwise
    pointwise: Callable[[Any, Any], Any]
    """d_phi(x, y) of each coordinate, where x is the first argument; at least zero."""
    points: Interval = REAL
    """Domain of the first argument."""
    queries: Interval = REAL
    """Domain of the second argument, at which phi must have a finite slope."""
    transform: Elementwise | None = None
    sums_to_one: bool = False
    num_columns: int | None = None
    """Number of columns of points and queries; None for any."""
    remedy: str = ""
    """Advice that ends the message about entries outside the domain."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def coordinates(self, x: Float[ArrayLike, "*n d"]) -> Float[ArrayLike, "*n d"]:
        """The coordinates in which the divergence is a sum; x itself without a `transform`."""
        return x if self.transform is None else self.transform(x)

    def divergence(
        self, x: Float[ArrayLike, "*#n d"], y: Float[ArrayLike, "*#n d"]
    ) -> Float[ArrayLike, "*#n"]:
        """D(x, y) over the last axis; leading axes broadcast. NumPy input is computed in float64.

        The result is infinite where numbers overflow to NaN.
        """
        xp = g.namespace(x, y)
        if xp is np:
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return row_sums(self.pointwise(self.coordinates(x), self.coordinates(y)))

    def check_points(
        self, x: ArrayLike, *, side: str = "data_first", first_row: int = 0
    ) -> Float[np.ndarray, "n d"]:
        """The points as an array. `first_row` is the number of x[0] in error messages.

        Raises: ValueError, one line, unless x is (n, d) and lies in the domain.
        """
        domain = self.points if points_come_first(side) else self.queries
        return self._check("points", x, domain, first_row)

    def check_queries(self, y: ArrayLike, *, side: str = "data_first") -> Float[np.ndarray, "n d"]:
        """The queries as an array. Raises: as `check_points`."""
        return self._check("queries", y, self.queries if points_come_first(side) else self.points)

    def dual(self) -> "Divergence":
        """The divergence D* of the convex conjugate: D(x, y) = D*(phi'(y), phi'(x)).

        It acts on gradients of `coordinates`, and has no transform of its own. An index of D* over
        phi'(points) therefore answers the queries of an index of D with side="query_first".
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
    """Sums over the last axis; NaN, from overflow, becomes infinite, so that sums can be sorted."""
    xp = g.namespace(parts)
    sums = xp.sum(parts, axis=-1)
    return xp.where(xp.isnan(sums), np.inf, sums)[()]


def points_come_first(side: str) -> bool:
    """Whether points are the first argument. Raises: ValueError for an unknown side."""
    return choose("side", side, {"data_first": True, "query_first": False})
