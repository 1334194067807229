# SPDX-License-Identifier: Apache-2.0
"""Features of a network made fit for density models: dead units, atoms, principal components.

Units that are constant on the training rows are left out; that one of them moves is evidence of its
own. Columns with atoms, such as zeros of ReLU, have no density: they get a little noise. The rest
is whitened along the principal components that explain most of the variance; what is left out there
is measured by its norm.
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


class Prepared(NamedTuple):
    """Whitened rows and two norms of what they leave out; large norms are unusual.

    The norms are in units of the features: of the part outside of the principal components, and of
    units that were constant in training, minus their constants.
    """

    x: Float[Array, "b p"]
    residual_norm: Float[Array, "b"]
    dead_norm: Float[Array, "b"]


@dataclasses.dataclass(frozen=True, eq=False)
class FeaturePreparation:
    """The map from features (b, d) to rows (b, p) of mean 0 and covariance I, p <= d.

    `kept` and `dead` are the indices of units that vary and do not; `constants` are the values of
    the dead. `mean` and `noise` (kept,) are means, and standard deviations of the noise, 0 without
    atoms. `directions` (kept, p) are orthonormal, and `whitening` is of coordinates along them.
    """

    kept: np.ndarray
    dead: np.ndarray
    constants: np.ndarray
    mean: np.ndarray
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
        min_variance: float = 1e-6,
        noise: float = 0.01,
        unit_norm: bool = False,
    ) -> "FeaturePreparation":
        """Fits training rows, in double precision.

        Keeps the principal components that explain the share `explained` of the variance of units
        whose variance is above `min_variance` times the largest, so that the scale of all features
        does not matter. `noise` is in standard deviations of a unit. With `unit_norm`, rows are
        first divided by their Euclidean norms.
        Raises: ValueError unless the rows are finite and at least two, a unit varies, explained is
        in (0, 1], min_variance in [0, 1), and noise is not negative.
        """
        if not 0 < explained <= 1:
            raise ValueError(
                f"the explained share of variance needs to lie in (0, 1]; got {explained}"
            )
        values = {"min_variance": min_variance, "noise": noise}
        require(values, ("min_variance",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
        require(values, ("noise",), lambda v: 0 <= v < math.inf, "to be at least 0")
        rows = np.asarray(rows, float)
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(f"features need rows (n, d), n >= 2; got shape {rows.shape}")
        if not np.isfinite(rows).all():
            bad = int(np.sum(~np.isfinite(rows).all(axis=1)))
            raise ValueError(f"features need finite numbers; {bad} of {len(rows)} rows have others")
        if unit_norm:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), TINY)
        # The rounding of a mean gives a constant such as 0.1 a variance above 0.
        variances = np.where(np.ptp(rows, axis=0) > 0, rows.var(axis=0), 0.0)
        varies = variances > min_variance * variances.max()
        if not varies.any():
            raise ValueError(
                f"features need a unit that varies; all {rows.shape[1]} units are constant on "
                f"{len(rows)} rows"
            )
        live = rows[:, varies]
        atoms = equal_pairs(live[:ROWS_FOR_ATOMS]) > MAX_EQUAL_PAIRS
        directions = principal_directions(live, explained)
        return cls(
            kept=np.flatnonzero(varies),
            dead=np.flatnonzero(~varies),
            constants=rows[:, ~varies].mean(axis=0),
            mean=live.mean(axis=0),
            noise=np.where(atoms, noise * live.std(axis=0), 0.0),
            directions=directions,
            whitening=Whitening.of(live @ directions),
            unit_norm=unit_norm,
        )

    @property
    def log_det(self) -> float:
        """Added to the log-density of prepared rows it gives that along the components, in nats."""
        return self.whitening.log_det

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
        off = rows[:, self.kept] - as_rows(self.mean)[None]
        directions, matrix = as_rows(self.directions), as_rows(self.whitening.matrix)
        along = matmul(off, directions)
        outside = off - matmul(along, directions.T)
        if rng is not None and self.noise.any():
            rngs = rng if rng.ndim else row_keys(rng, len(rows))
            noise = as_rows(self.noise)[None] * normal(rngs, off.shape, rows.dtype)
            along = along + matmul(noise, directions)
        dead = rows[:, self.dead] - as_rows(self.constants)[None]
        whitened = matmul(along, matrix)
        return Prepared(whitened, norm_except_batch(outside), norm_except_batch(dead))


def principal_directions(rows: Float[np.ndarray, "n d"], explained: float) -> np.ndarray:
    """Orthonormal directions (d, p), as few as explain the share of the variance, largest first.

    Directions without variance beyond rounding, as of dependent columns, are never among them.
    """
    variances, directions = np.linalg.eigh(np.cov(rows, rowvar=False).reshape(2 * rows.shape[1:]))
    variances, directions = variances[::-1], directions[:, ::-1]
    shares = np.cumsum(variances) / variances.sum()
    num = 1 + int(np.searchsorted(shares, explained - ROUNDING))
    return directions[:, : min(num, int(np.sum(variances > SMALLEST * variances[0])))]
