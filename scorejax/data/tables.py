# SPDX-License-Identifier: Apache-2.0
"""Tables of real numbers that come with scikit-learn, prepared for density models.

Redundant columns are dropped, rounded values are dequantised, and the rows are whitened. All of
this is fitted on the training rows alone. The published code also whitens with the test rows, which
leaks a little of them into training.

Source: the preparation of Wenliang et al. 2019, arXiv:1811.08357, Section 5.2 (on other tables).
"""

import dataclasses
import importlib
import math

import numpy as np
from jaxtyping import Float, Int

from scorejax.choices import choose
from scorejax.data.images import Images
from scorejax.data.source import memory_source
from scorejax.typing import OfflineSource

LOADERS = {
    "wine": "load_wine",
    "breast_cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
    "iris": "load_iris",
}
MAX_CORRELATION = 0.98


@dataclasses.dataclass(frozen=True)
class Whitening:
    """The map x -> (x - mean) @ matrix, with mean (d,) and matrix (d, d)."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Whitening":
        """Fits rows (n, d) by principal components. Raises: ValueError if their rank is below d."""
        variances, directions = np.linalg.eigh(
            np.cov(rows, rowvar=False).reshape(2 * rows.shape[1:])
        )
        if not variances[0] > 1e-10 * variances[-1]:
            raise ValueError(
                f"whitening needs more rows than columns, and linearly independent columns; got "
                f"shape {rows.shape}, variances from {variances[0]:.1e} to {variances[-1]:.1e}"
            )
        return cls(rows.mean(axis=0), directions / np.sqrt(variances)[None])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean[None]) @ self.matrix

    @property
    def log_det(self) -> float:
        """log |det matrix|; added to the log-density of whitened rows it gives that of raw rows."""
        return float(np.linalg.slogdet(self.matrix)[1])


@dataclasses.dataclass(frozen=True)
class Table:
    """Whitened rows (n, d) of three splits as float32, the names of the columns, the whitening."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    whitening: Whitening

    @property
    def dim(self) -> int:
        return len(self.columns)

    def training_source(self, batch_size: int, *, noise: float = 0.0) -> OfflineSource:
        """Batches "image" (b, d) of training rows, with fresh N(0, noise^2) noise in every batch.

        Raises: ValueError if noise is negative or not finite.
        """
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise needs to be 0 or a positive number; got {noise}")
        labels = np.zeros(len(self.train), np.int32)

        def noisy(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
            return rows + noise * rng.standard_normal(rows.shape, dtype=np.float32)

        return memory_source(Images(self.train, labels), batch_size, noisy)


def load(name: str, *, seed: int = 0, held_out: float = 0.1) -> Table:
    """Loads a table and shuffles its rows by the seed.

    `held_out` is the fraction of rows in the test split, and again in the validation split.
    Raises: ValueError if the table is unknown or `held_out` is not in (0, 0.5).
    """
    loader = choose("table", name, LOADERS)
    if not 0 < held_out < 0.5:
        raise ValueError(f"held_out needs to lie between 0 and 0.5; got {held_out}")
    datasets = importlib.import_module("sklearn.datasets")  # Imported here: it takes half a second.
    bunch = getattr(datasets, loader)()
    rng = np.random.default_rng(seed)
    rows, names = rng.permutation(bunch.data), np.asarray(bunch.feature_names)
    num_held = max(1, round(held_out * len(rows)))
    kept = distinct_columns(rows[2 * num_held :])
    rows = dequantized(rng, rows[:, kept], cell_widths(rows[2 * num_held :, kept]))
    whiten = Whitening.of(rows[2 * num_held :])
    white = whiten(rows).astype(np.float32)
    test, valid, train = np.split(white, [num_held, 2 * num_held])
    return Table(train, valid, test, tuple(map(str, names[kept])), whiten)


def distinct_columns(
    rows: Float[np.ndarray, "n d"], *, max_correlation: float = MAX_CORRELATION
) -> Int[np.ndarray, "kept"]:
    """Indices of columns that vary and whose |correlation| with each earlier one is small."""
    varying = np.flatnonzero(rows.std(axis=0) > 0)
    correlation = np.abs(np.corrcoef(rows[:, varying], rowvar=False).reshape(2 * varying.shape))
    kept: list[int] = []
    for column in range(len(varying)):
        if not kept or correlation[column, kept].max() <= max_correlation:
            kept.append(column)
    return varying[kept]


def cell_widths(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d"]:
    """Median gap between adjacent values of each column with repeated values; 0 for others."""
    widths = []
    for column in rows.T:
        values = np.unique(column)
        repeated = 1 < len(values) < len(column)
        widths.append(np.median(np.diff(values)) if repeated else 0.0)
    return np.asarray(widths)


def dequantized(
    rng: np.random.Generator, rows: Float[np.ndarray, "n d"], widths: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "n d"]:
    """Replaces each value by a uniform draw from a cell of its column's width around it."""
    return rows + (rng.random(rows.shape) - 0.5) * widths[None]
