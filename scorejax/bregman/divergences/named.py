# SPDX-License-Identifier: Apache-2.0
"""The Bregman divergences of the library by name, and the lookup that an index on disk uses."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from scorejax.bregman.divergences import generators as g
from scorejax.bregman.divergences.divergence import Divergence
from scorejax.bregman.divergences.domain import POSITIVE, UNIT, Interval
from scorejax.choices import choose


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
