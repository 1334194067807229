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
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scorejax.bregman import generators as g
from scorejax.bregman.domain import POSITIVE, REAL, UNIT, Interval, check_rows, check_sums
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


@functools.cache
def squared_euclidean() -> Divergence:
    """sum_j (x_j - y_j)^2."""
    return Divergence("squared_euclidean", g.square, g.double, g.half, g.squared_difference)


def mahalanobis(
    *,
    weights: Float[ArrayLike, "d"] | None = None,
    matrix: Float[ArrayLike, "d d"] | None = None,
) -> Divergence:
    """(x - y)' Q (x - y), Q given as a matrix or by the weights on its diagonal.

    Coordinates are L' x with Q = L L'. Raises: ValueError unless Q is symmetric and positive.
    """
    if (weights is None) == (matrix is None):
        raise ValueError("mahalanobis needs either weights (d,) or a matrix (d, d).")
    if weights is not None:
        q = np.asarray(weights, np.float64)
        if q.ndim != 1 or not (np.isfinite(q) & (q > 0)).all():
            raise ValueError(f"mahalanobis needs weights (d,) > 0; got {q}.")
        root, options = np.sqrt(q), {"weights": q.tolist()}
    else:
        q = np.asarray(matrix, np.float64)
        if q.ndim != 2 or q.shape[0] != q.shape[1] or not np.allclose(q, q.T, rtol=1e-10, atol=0):
            raise ValueError(f"mahalanobis needs a symmetric matrix (d, d); got shape {q.shape}.")
        if not np.isfinite(q).all():
            raise ValueError("mahalanobis needs a matrix of finite numbers; this one is not.")
        root, options = _cholesky(q), {"matrix": q.tolist()}
    return dataclasses.replace(
        squared_euclidean(),
        name="mahalanobis",
        transform=functools.partial(g.whiten, root),
        num_columns=len(root),
        options=options,
    )


@functools.cache
def itakura_saito(*, smoothing: float = 0.0) -> Divergence:
    """sum_j x_j / y_j - log(x_j / y_j) - 1, of spectra: blind to a common scale of x and y.

    `smoothing` is added to every entry of points and queries, and so permits zeros; it changes the
    divergence, and with it who is near.
    """
    divergence = Divergence(
        "itakura_saito",
        g.minus_log,
        g.minus_reciprocal,
        g.minus_reciprocal,
        g.itakura_saito,
        points=POSITIVE,
        queries=POSITIVE,
    )
    return _smoothed(divergence, smoothing)


@functools.cache
def exponential() -> Divergence:
    """sum_j exp(x_j) - exp(y_j) - exp(y_j) (x_j - y_j), for entries whose exponential is finite."""
    domain = Interval(upper=709.0, closed_upper=True)
    return Divergence(
        "exponential", g.exp, g.exp, g.log, g.exponential, points=domain, queries=domain
    )


@functools.cache
def generalized_kl(*, smoothing: float = 0.0) -> Divergence:
    """sum_j x_j log(x_j / y_j) - x_j + y_j, of counts or intensities; 0 log 0 = 0.

    Equals the Kullback-Leibler divergence where both sum to one. `smoothing`: as `itakura_saito`.
    """
    divergence = Divergence(
        "generalized_kl",
        g.negative_entropy,
        g.log,
        g.exp,
        g.generalized_kl,
        points=POSITIVE.closed(),
        queries=POSITIVE,
    )
    return _smoothed(divergence, smoothing)


@functools.cache
def simplex_kl(*, smoothing: float = 0.0) -> Divergence:
    """KL(x || y) = sum_j x_j log(x_j / y_j) of rows that sum to one.

    Rows are divided by their sums in double precision, after `smoothing` is added to every entry.
    """
    divergence = generalized_kl(smoothing=smoothing)
    return dataclasses.replace(
        divergence,
        name="simplex_kl",
        transform=functools.partial(g.normalize, smoothing),
        sums_to_one=True,
    )


@functools.cache
def logistic() -> Divergence:
    """Sum of binary KLs x log(x / y) + (1 - x) log((1 - x) / (1 - y)) of probabilities."""
    return Divergence(
        "logistic",
        g.negative_binary_entropy,
        g.logit,
        g.sigmoid,
        g.binary_kl,
        points=UNIT.closed(),
        queries=UNIT,
    )


@functools.cache
def beta(*, b: float) -> Divergence:
    """The beta divergence, of phi(x) = x^b / (b (b - 1)).

    Tends to Itakura-Saito as b tends to 0 and to generalised KL as b tends to 1, where it is not
    defined and |b - 1| costs digits; half squared Euclidean at b = 2. Zeros: points may have them
    for b > 0, queries for b > 1.
    Raises: ValueError unless b is finite and neither 0 nor 1.
    """
    if not np.isfinite(b) or b in (0, 1):
        raise ValueError(
            f"beta needs a finite b other than 0 and 1; got {b}. "
            "Those limits are itakura_saito and generalized_kl."
        )
    names = ("phi", "gradient", "inverse_gradient", "pointwise")
    functions = (g.power, g.power_gradient, g.power_inverse_gradient, g.beta)
    return Divergence(
        "beta",
        **{n: functools.partial(f, b) for n, f in zip(names, functions, strict=True)},
        points=POSITIVE.closed() if b > 0 else POSITIVE,
        queries=POSITIVE.closed() if b > 1 else POSITIVE,
        options={"b": float(b)},
    )


DIVERGENCES: Mapping[str, Callable[..., Divergence]] = {
    "squared_euclidean": squared_euclidean,
    "mahalanobis": mahalanobis,
    "itakura_saito": itakura_saito,
    "exponential": exponential,
    "generalized_kl": generalized_kl,
    "simplex_kl": simplex_kl,
    "logistic": logistic,
    "beta": beta,
}


def get(divergence: "str | Divergence", **options: Any) -> Divergence:
    """The divergence of that name, with its options; a Divergence is passed through.

    Raises: ValueError, which lists the known ones, for another name or another option, and for an
    option that cannot be.
    """
    if isinstance(divergence, Divergence):
        if options:
            raise ValueError(f"{divergence.name} is made already; it takes no {sorted(options)}.")
        return divergence
    make = choose("divergence", divergence, DIVERGENCES)
    signature = inspect.signature(make)
    try:
        signature.bind(**options)
    except TypeError:
        known = sorted(signature.parameters)
        raise ValueError(
            f"{divergence} takes the options {known}; got {sorted(options)}."
        ) from None
    try:
        return make(**options)
    except TypeError:
        raise ValueError(f"{divergence} needs numbers for its options; got {options}.") from None


@g.quiet
def row_sums(parts: Float[ArrayLike, "*n d"]) -> Float[ArrayLike, "*n"]:
    """Sums over the last axis; what overflowed to NaN is infinite, and so has a place in order."""
    xp = g.namespace(parts)
    sums = xp.sum(parts, axis=-1)
    return xp.where(xp.isnan(sums), np.inf, sums)[()]


def points_come_first(side: str) -> bool:
    """Whether points are the first argument. Raises: ValueError for an unknown side."""
    return choose("side", side, {"data_first": True, "query_first": False})


def _smoothed(divergence: Divergence, smoothing: float) -> Divergence:
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"{divergence.name} needs smoothing >= 0; got {smoothing}.")
    if not smoothing:
        return dataclasses.replace(divergence, remedy=" Zeros need smoothing > 0.")
    return dataclasses.replace(
        divergence,
        points=divergence.points.closed(),
        queries=divergence.queries.closed(),
        transform=functools.partial(g.shift, smoothing),
        options={"smoothing": float(smoothing)},
    )


def _cholesky(q: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.cholesky(q)
    except np.linalg.LinAlgError:
        raise ValueError("mahalanobis needs a positive definite matrix; this one is not.") from None
