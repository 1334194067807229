# SPDX-License-Identifier: Apache-2.0
"""Checks of the rows that scores are fitted to; each error names the first value that is wrong."""

import hashlib
import warnings
from collections.abc import Collection

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from scorejax.data.features import FeaturePreparation
from scorejax.density.rows import checked_labels


def finite_rows(values: ArrayLike, name: str = "features") -> Float[np.ndarray, "n d"]:
    """The rows in double precision.

    Raises: ValueError for no rows, or one that is masked or not finite.
    """
    require_unmasked(values, name)
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
    """Features and logits in double precision.

    Raises: ValueError if they differ in length, or as `require_logits`.
    """
    features, logits = finite_rows(features), finite_rows(logits, "logits")
    require_logits(logits)
    if len(features) != len(logits):
        raise ValueError(
            f"{len(features)} rows of features need as many logits; got {len(logits)}."
        )
    return features, logits


def logit_rows(logits: ArrayLike, num: int) -> Float[np.ndarray, "num k"]:
    """The logits of `num` rows in single precision.

    Raises: ValueError for another shape, or as `finite_rows` and `require_logits`.
    """
    require_unmasked(logits, "logits")
    logits = np.asarray(logits, np.float32)
    if logits.ndim != 2 or len(logits) != num or logits.shape[1] < 2:
        raise ValueError(f"{num} rows need logits ({num}, k), k >= 2; got {logits.shape}")
    finite_rows(logits, "logits")
    require_logits(logits)
    return logits


def require_unmasked(values: ArrayLike, name: str = "features") -> None:
    """Raises ValueError for a masked array with masked entries, whose values mean nothing."""
    masked = np.argwhere(np.ma.getmaskarray(values)) if np.ma.isMaskedArray(values) else ()
    if len(masked):
        raise ValueError(
            f"{name} need a value in each place; row {masked[0][0]} has masked ones. Drop such "
            "rows, or fill them"
        )


def require_logits(logits: Float[np.ndarray, "n k"]) -> None:
    """Raises ValueError for probabilities, whose softmax would be nearly uniform."""
    # Half precision rounds the sum of a thousand probabilities by less than this.
    if np.all(logits >= 0) and np.all(np.abs(logits.sum(axis=1) - 1) < 1e-3):
        raise ValueError(
            "logits are rows that sum to 1, as probabilities do: give numbers before the softmax, "
            "or the logarithms of probabilities"
        )


def labelled_rows(
    features: ArrayLike, labels: ArrayLike, num_classes: int | None
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, "n"], int]:
    """Features in double precision, labels, and the number of classes, by default that of labels.

    Raises: ValueError unless each row has a label 0 .. num_classes - 1, and each class a row.
    """
    features = finite_rows(features)
    return features, *checked_labels(labels, len(features), num_classes)


def held_out_rows(num: int, share: float | None, seed: int) -> Bool[np.ndarray, "num"]:
    """Whether each row is held out: a share of them, at least one; with None, no row.

    Raises: ValueError for fewer than three rows, if there is a share.
    """
    held = np.zeros(num, bool)
    if share is None:
        return held
    if num < 3:
        raise ValueError(f"held_out needs 3 rows or more, 2 to fit and 1 to calibrate; got {num}")
    size = min(max(1, round(share * num)), num - 2)
    held[np.random.default_rng(seed).permutation(num)[:size]] = True
    return held


def row_digests(rows: Float[np.ndarray, "n d"]) -> list[bytes]:
    """A digest of each row; rows of equal numbers have equal ones, in 0 and -0 too."""
    plus_zero = rows + np.zeros((), rows.dtype)
    return [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in plus_zero]


def warn_of_seen(rows: Float[np.ndarray, "n d"], seen: Collection[bytes]) -> None:
    """Warns if calibration rows have digests of rows that were fitted to.

    Features of few values coincide in independent rows too.
    """
    num = sum(digest in seen for digest in row_digests(rows))
    if num:
        warnings.warn(
            f"{num} of {len(rows)} calibration rows equal a row of fit. If they are the same "
            "rows, new ones will look odd beside them, and false alarms exceed alpha: calibrate on "
            "rows held out. Rows that coincide by chance do no harm",
            stacklevel=4,
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


def warn_of_unseen(preparation: FeaturePreparation, explained: float) -> None:
    """Warns if the density sees fewer dimensions than features have, but by `explained`."""
    num_dead, num_kept = len(preparation.dead), len(preparation.kept)
    num_seen = preparation.directions.shape[1]
    if num_dead or (explained == 1 and num_seen < num_kept):
        warnings.warn(
            f"the density sees {num_seen} of {num_kept + num_dead} dimensions of the features; "
            "what lies outside is in density_scores' 'residual' and 'dead', and in no p-value",
            stacklevel=3,
        )


def column_names(rows: ArrayLike | None) -> list | None:
    """Names of the columns of a data frame; None for arrays."""
    # Arrow's tables call the columns themselves `columns`.
    columns = getattr(rows, "column_names", getattr(rows, "columns", None))
    return None if columns is None else list(columns)


def require_same_names(names: list | None, calibrated: list | None) -> None:
    """Raises ValueError for data frames of logits whose columns differ in names or order."""
    if names is not None and calibrated is not None and names != calibrated:
        raise ValueError(
            f"logits need the columns of calibrate, in their order, {calibrated}; got {names}"
        )
