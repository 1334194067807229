# SPDX-License-Identifier: Apache-2.0
"""Features of a network made fit for density models: dead units, atoms, principal components.

Units that are constant on the training rows are left out; that one of them moves is evidence of its
own. Columns with atoms, such as zeros of ReLU, have no density: they get a little noise. The rest,
each unit in its own standard deviations, is whitened along the principal components that explain
most of the variance; what is left out there is measured by its norm. Units of measurement do not
matter, nor does one unit that is much larger than the others.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.choices import require
from scorejax.data.preparation import MAX_EQUAL_PAIRS, Whitening, equal_pairs
from scorejax.numerics import norm_except_batch
from scorejax.random import Rng, normal, row_keys

ROWS_FOR_ATOMS = 10_000
"""Rows in which repeated values are counted."""
TINY = 1e-12
"""Norm below which a row of features is not scaled up to one."""
ROUNDING = 1e-9
SMALLEST = 1e-9
"""Variance, in units of the largest, below which a direction is that of dependent columns."""
DEAD = 4 * float(np.finfo(np.float32).eps)
"""Standard deviation of a unit, in units of its largest value, that rounding may be the cause of.

Rows are prepared in single precision, which rounds a value by an eighth of that at most.
"""


class Prepared(NamedTuple):
    """Whitened rows and two norms of what they leave out; large norms are unusual.

    `residual_norm` is of the part outside of the principal components, in standard deviations of
    the units. `dead_norm`, in units of the features, is of units that were constant in training,
    minus their constants.
    """

    x: Float[Array, "b p"]
    residual_norm: Float[Array, "b"]
    dead_norm: Float[Array, "b"]


@dataclasses.dataclass(frozen=True, eq=False)
class FeaturePreparation:
    """The map from features (b, d) to rows (b, p) of mean 0 and covariance I, p <= d.

    `kept` and `dead` are the indices of units that vary and do not; `constants` are the values of
    the dead. `mean`, `std` and `noise` (kept,) are means, standard deviations, and those of the
    noise, 0 without atoms, in units of the features. `directions` (kept, p) of standardised units
    are orthonormal, and `whitening` is of coordinates along them.
    """

    kept: np.ndarray
    dead: np.ndarray
    constants: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    noise: np.ndarray
    directions: np.ndarray
    whitening: Whitening
    unit_norm: bool

    @classmethod
    def of(
        cls,
        rows: Float[np.ndarray, "n d"],
        *,
        explained: float = 0.99,
        noise: float = 0.01,
        unit_norm: bool = False,
    ) -> "FeaturePreparation":
        """Fits training rows, in double precision.

        Leaves out units that are constant, or as good as constant in single precision, whatever the
        others do (`DEAD`). Keeps the principal components that explain the share `explained` of the
        variance of standardised units. `noise` is in standard deviations of a unit. With
        `unit_norm`, rows are first divided by their Euclidean norms.
        Raises: ValueError unless the rows are finite and at least two, a unit varies, explained is
        in (0, 1], and noise is not negative.
        """
        if not 0 < explained <= 1:
            raise ValueError(
                f"the explained share of variance needs to lie in (0, 1]; got {explained}"
            )
        require({"noise": noise}, ("noise",), lambda v: 0 <= v < math.inf, "to be at least 0")
        rows = _finite(rows)
        if unit_norm:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
        varies = _varies(rows)
        live = rows[:, varies]
        mean, std = live.mean(axis=0), live.std(axis=0)
        atoms = equal_pairs(live[:ROWS_FOR_ATOMS]) > MAX_EQUAL_PAIRS
        standard = (live - mean[None]) / std[None]
        directions = principal_directions(standard, explained)
        return cls(
            kept=np.flatnonzero(varies),
            dead=np.flatnonzero(~varies),
            constants=rows[:, ~varies].mean(axis=0),
            mean=mean,
            std=std,
            noise=np.where(atoms, noise * std, 0.0),
            directions=directions,
            whitening=Whitening.of(standard @ directions),
            unit_norm=unit_norm,
        )

    @property
    def log_det(self) -> float:
        """Added to the log-density of prepared rows it gives that of the features, in nats.

        Where components are left out, it is the density of the rows' projection onto the subspace
        that the map sees, which orthonormal coordinates of the features measure.
        """
        if self.directions.shape[1] == len(self.kept):
            return self.whitening.log_det - float(np.log(self.std).sum())
        # The root of the Gram determinant of the map to standardised coordinates.
        triangle = np.linalg.qr(self.directions / self.std[:, None], mode="r")
        return self.whitening.log_det + float(np.log(np.abs(np.diag(triangle))).sum())

    def __call__(self, rows: Float[Array, "b d"], rng: Rng | None = None) -> Prepared:
        """Prepares rows; a function that JAX compiles and differentiates.

        `rng` draws the noise of units with atoms: that of row i from key i, by default from `rng`
        and i alone. Without it there is none.
        Raises: ValueError for rows of another length than those in training.
        """
        num_units = len(self.kept) + len(self.dead)
        if rows.ndim != 2 or rows.shape[1] != num_units:
            raise ValueError(
                f"features need rows (b, {num_units}) as in training; got {rows.shape}"
            )
        rows = jnp.asarray(rows, float)
        if self.unit_norm:
            rows = rows / jnp.maximum(norm_except_batch(rows), TINY)[:, None]
        as_rows = lambda values: jnp.asarray(values, rows.dtype)
        # Whitening magnifies rounding along components of small variance.
        matmul = functools.partial(jnp.matmul, precision="highest")
        std = as_rows(self.std)[None]
        off = (rows[:, self.kept] - as_rows(self.mean)[None]) / std
        directions, matrix = as_rows(self.directions), as_rows(self.whitening.matrix)
        along = matmul(off, directions)
        outside = off - matmul(along, directions.T)
        if rng is not None and self.noise.any():
            rngs = rng if rng.ndim else row_keys(rng, len(rows))
            noise = as_rows(self.noise)[None] / std * normal(rngs, off.shape, rows.dtype)
            along = along + matmul(noise, directions)
        dead = rows[:, self.dead] - as_rows(self.constants)[None]
        whitened = matmul(along, matrix)
        return Prepared(whitened, norm_except_batch(outside), norm_except_batch(dead))


def _finite(rows: Float[np.ndarray, "n d"]) -> np.ndarray:
    """The rows in double precision. Raises: ValueError unless they are two, and finite."""
    rows = np.asarray(rows, float)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"features need rows (n, d), n >= 2; got shape {rows.shape}")
    if not np.isfinite(rows).all():
        bad = int(np.sum(~np.isfinite(rows).all(axis=1)))
        raise ValueError(f"features need finite numbers; {bad} of {len(rows)} rows have others")
    return rows


def _varies(rows: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Whether each unit varies by more than rounding. Raises: ValueError if none does."""
    # The rounding of a mean gives a constant such as 0.1 a variance above 0.
    constant = np.ptp(rows, axis=0) == 0
    rounding = np.maximum(DEAD * np.abs(rows).max(axis=0), np.finfo(np.float32).tiny)
    varies = ~constant & (rows.std(axis=0) > rounding)
    if varies.any():
        return varies
    num, least = rows.shape[1], "features need a unit that varies"
    if constant.all():
        raise ValueError(f"{least}; all {num} units are constant on {len(rows)} rows")
    raise ValueError(
        f"{least} in single precision; the standard deviation of all {num} units is at most "
        f"{DEAD:.1g} of their size. Subtract their mean in double precision"
    )


def principal_directions(rows: Float[np.ndarray, "n d"], explained: float) -> np.ndarray:
    """Orthonormal directions (d, p), as few as explain the share of the variance, largest first.

    Directions without variance beyond rounding, as of dependent columns, are never among them.
    """
    variances, directions = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(2 * rows.shape[1:]))
    variances, directions = variances[::-1], directions[:, ::-1]
    shares = np.cumsum(variances) / variances.sum()
    num = 1 + int(np.searchsorted(shares, explained - ROUNDING))
    return directions[:, : min(num, int(np.sum(variances > SMALLEST * variances[0])))]
