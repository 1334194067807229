# SPDX-License-Identifier: Apache-2.0
"""Domains of points and queries, and the checks that raise one line for entries outside."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SIMPLEX_TOLERANCE = 1e-4
"""Largest distance of a row's sum from one; rounding to float32 or fewer bits stays below it."""


class Interval(NamedTuple):
    """The numbers between two ends; a closed end belongs to the interval, NaN never does."""

    lower: float = -np.inf
    upper: float = np.inf
    closed_lower: bool = False
    closed_upper: bool = False

    def __str__(self) -> str:
        if self.lower == -np.inf and self.upper == np.inf:
            return "of finite numbers"
        if self.upper == np.inf:
            return f"{'>=' if self.closed_lower else '>'} {self.lower:g}"
        if self.lower == -np.inf:
            return f"{'<=' if self.closed_upper else '<'} {self.upper:g}"
        left, right = "(["[self.closed_lower], ")]"[self.closed_upper]
        return f"in {left}{self.lower:g}, {self.upper:g}{right}"

    def contains(self, x: np.ndarray) -> np.ndarray:
        """Whether each number lies in the interval."""
        above = x >= self.lower if self.closed_lower else x > self.lower
        below = x <= self.upper if self.closed_upper else x < self.upper
        return above & below

    def interior(self) -> float:
        """A number inside the interval: the middle of a bounded one."""
        if np.isfinite(self.lower) and np.isfinite(self.upper):
            return (self.lower + self.upper) / 2
        if np.isfinite(self.lower):
            return self.lower + 1.0
        return self.upper - 1.0 if np.isfinite(self.upper) else 0.0

    def closed(self) -> "Interval":
        """The interval with its finite ends included."""
        return self._replace(
            closed_lower=bool(np.isfinite(self.lower)), closed_upper=bool(np.isfinite(self.upper))
        )

    def image(self, increasing: Callable[[np.ndarray], np.ndarray]) -> "Interval":
        """The image under an increasing function; an end at which that is NaN becomes infinite."""
        with np.errstate(all="ignore"):
            lower, upper = np.asarray(increasing(np.array([self.lower, self.upper], np.float64)))
        lower = -np.inf if np.isnan(lower) else float(lower) + 0.0
        upper = np.inf if np.isnan(upper) else float(upper) + 0.0  # not -0.0
        return Interval(lower, upper, self.closed_lower, self.closed_upper)


REAL = Interval()
POSITIVE = Interval(lower=0.0)
UNIT = Interval(lower=0.0, upper=1.0)


def check_rows(
    name: str, what: str, x: ArrayLike, domain: Interval, first_row: int = 0, remedy: str = ""
) -> np.ndarray:
    """x as an array. Raises: ValueError unless it is (n, d) of real numbers in the domain."""
    rows = np.asarray(x)
    if rows.dtype.kind == "V" and jnp.issubdtype(rows.dtype, jnp.floating):
        rows = rows.astype(np.float32)  # bfloat16 and smaller types are not NumPy's own
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"{name} needs {what} of shape (n, d); got {rows.shape}.")
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"{name} needs {what} of real numbers; got dtype {rows.dtype}.")
    # The two extremes first: no temporary as large as the data when all is well.
    if len(rows) and not domain.contains(np.array([rows.min(), rows.max()])).all():
        i, j = np.argwhere(~domain.contains(rows))[0]
        raise ValueError(
            f"{name} needs {what} {domain}; "
            f"got {rows[i, j]} at row {first_row + i}, column {j}.{remedy}"
        )
    return rows


def check_sums(name: str, what: str, rows: np.ndarray, first_row: int = 0) -> None:
    """Raises ValueError unless every row sums to one, up to rounding."""
    sums = rows.sum(axis=1, dtype=np.float64)
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= SIMPLEX_TOLERANCE))
    if len(wrong):
        raise ValueError(
            f"{name} needs {what} whose rows sum to 1; "
            f"row {first_row + wrong[0]} sums to {sums[wrong[0]]:.6g}. "
            "Divide rows by their sums, or use generalized_kl."
        )
