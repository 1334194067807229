# SPDX-License-Identifier: Apache-2.0
"""Checks of the rows that scores are fitted to; each error names the first value that is wrong."""

import hashlib
import warnings
from collections.abc import Collection

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from scorejax.density.rows import checked_labels


def finite_rows(values: ArrayLike, name: str = "features") -> Float[np.ndarray, "n d"]:
    """The rows in double precision. Raises: ValueError for no rows, or one that is not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"{name} need to be rows (n, d), at least one; got {values.shape}.")
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{name} need to be finite; got {values[row, column]} in row {row}, column {column}. "
            "Drop rows of infinities or NaN."
        )
    return values


def paired_rows(
    features: ArrayLike, logits: ArrayLike
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n k"]]:
    """Features and logits in double precision. Raises: ValueError if they differ in length."""
    features, logits = finite_rows(features), finite_rows(logits, "logits")
    if len(features) != len(logits):
        raise ValueError(
            f"{len(features)} rows of features need as many logits; got {len(logits)}."
        )
    return features, logits


def labelled_rows(
    features: ArrayLike, labels: ArrayLike, num_classes: int | None
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"], int]:
    """Features in double precision, labels, and the number of classes, by default that of labels.

    Raises: ValueError unless each row has a label 0 .. num_classes - 1, and each class a row.
    """
    features = finite_rows(features)
    return features, *checked_labels(labels, len(features), num_classes)


def row_digests(rows: Float[np.ndarray, "n d"]) -> list[bytes]:
    """A digest of each row; rows of equal numbers have equal ones, in 0 and -0 too."""
    plus_zero = rows + np.zeros((), rows.dtype)
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in plus_zero]


def warn_of_seen(rows: Float[np.ndarray, "n d"], seen: Collection[bytes]) -> None:
    """Warns if calibration rows have digests of rows that were fitted to."""
    num = sum(digest in seen for digest in row_digests(rows))
    if num:
        warnings.warn(
            f"{num} of {len(rows)} calibration rows were fitted to as well: new rows will look "
            "odd beside them, and false alarms exceed alpha. Calibrate on rows held out",
            stacklevel=3,
        )


def warn_of_rounding(rows: Float[np.ndarray, "n d"], dead: Int[np.ndarray, "m"]) -> None:
    """Warns if units that were left out vary, by less than single precision can tell."""
    lost = dead[np.ptp(rows[:, dead], axis=0) > 0]
    if len(lost):
        warnings.warn(
            f"{len(lost)} of {rows.shape[1]} units, the first is {lost[0]}, vary less than single "
            "precision can tell beside their size, and the density does not see them. Subtract "
            "their mean in double precision, or drop them",
            stacklevel=3,
        )
