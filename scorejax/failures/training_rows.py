# SPDX-License-Identifier: Apache-2.0
"""Checks of the rows that scores are fitted to; each names the first value that is wrong."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int


def finite_rows(values: ArrayLike, name: str = "features") -> Float[np.ndarray, "n d"]:
    """The rows in double precision. Raises: ValueError for no rows, or one that is not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"{name} need to be rows (n, d), at least one; got {values.shape}.")
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{name} need to be finite; got {values[row, column]} in row {row}, column {column}."
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
    features, labels = finite_rows(features), np.asarray(labels)
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{len(features)} rows of features need as many integer labels; got {labels.dtype} "
            f"{labels.shape}."
        )
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels need to lie in 0 .. {num_classes - 1}; got {labels.min()} .. {labels.max()}."
        )
    require_all_classes(labels, num_classes, "training rows")
    return features, labels, num_classes


def require_all_classes(labels: np.ndarray, num_classes: int, rows: str) -> None:
    """Raises: ValueError naming the first class that has no label among these rows."""
    missing = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(missing):
        raise ValueError(
            f"each class needs {rows}; class {missing[0]} of {num_classes} has none. Number the "
            "classes 0, 1, ... without gaps, or leave this score out."
        )
