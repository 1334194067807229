# SPDX-License-Identifier: Apache-2.0
"""Tables of real numbers that come with scikit-learn, made ready for density models.

Columns that say what another says already are dropped, values that were rounded are spread over
their cells, and the rest is whitened. All of it is fitted on the training rows alone; the published
code whitens with the test rows too, which tells the model a little about them.

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
    """The map x -> (x - mean) @ matrix, (d,) and (d, d), which whitens the rows it was made of."""

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Whitening":
        """By principal components. Raises: ValueError if the rows do not span their space."""
        variances, directions = np.linalg.eigh(
            np.cov(rows, rowvar=False).reshape(2 * rows.shape[1:])
        )
        if not variances[0] > 1e-10 * variances[-1]:
            raise ValueError(
                f"whitening needs more rows than columns, none of them a sum of others; got shape "
                f"{rows.shape} with variances from {variances[0]:.1e} to {variances[-1]:.1e}"
            )
        return cls(rows.mean(axis=0), directions / np.sqrt(variances)[None])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean[None]) @ self.matrix

    @property
    def log_det(self) -> float:
        """What a log-density of whitened rows, plus this, is in the units of the table."""
        return float(np.linalg.slogdet(self.matrix)[1])


@dataclasses.dataclass(frozen=True)
class Table:
    """White rows (n, d) in three parts, float32; which columns they are made of, and how."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    whitening: Whitening

    @property
    def dim(self) -> int:
        return len(self.columns)

    def training_source(self, batch_size: int, *, noise: float = 0.0) -> OfflineSource:
        """Batches "image" (b, d) of training rows, to which N(0, noise^2) is added anew each time.

        Raises: ValueError if noise is negative or not finite.
        """
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise needs to be 0 or a positive number; got {noise}")
        labels = np.zeros(len(self.train), np.int32)

        def noisy(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
            return rows + noise * rng.standard_normal(rows.shape, dtype=np.float32)

        return memory_source(Images(self.train, labels), batch_size, noisy)


def load(name: str, *, seed: int = 0, held_out: float = 0.1) -> Table:
    """A table by name, its rows shuffled by the seed; `held_out` is the share of test rows.

    Of the rows there are as many for validation as for the test.
    Raises: ValueError for an unknown table, or a share that leaves a part without rows.
    """
    loader = choose("table", name, LOADERS)
    if not 0 < held_out < 0.5:
        raise ValueError(f"held_out needs to lie between 0 and 0.5; got {held_out}")
    datasets = importlib.import_module("sklearn.datasets")  # Half a second, once it is needed.
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
    """Which columns vary and are not correlated, up to sign, with one before them: indices."""
    varying = np.flatnonzero(rows.std(axis=0) > 0)
    correlation = np.abs(np.corrcoef(rows[:, varying], rowvar=False).reshape(2 * varying.shape))
    kept: list[int] = []
    for column in range(len(varying)):
        if not kept or correlation[column, kept].max() <= max_correlation:
            kept.append(column)
    return varying[kept]


def cell_widths(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d"]:
    """Median gap between neighbouring values of each column that repeats any; 0 of others."""
    widths = []
    for column in rows.T:
        values = np.unique(column)
        repeated = 1 < len(values) < len(column)
        widths.append(np.median(np.diff(values)) if repeated else 0.0)
    return np.asarray(widths)


def dequantized(
    rng: np.random.Generator, rows: Float[np.ndarray, "n d"], widths: Float[np.ndarray, "d"]
) -> Float[np.ndarray, "n d"]:
    """Each value as a uniform draw from a cell around it, of its column's width."""
    return rows + (rng.random(rows.shape) - 0.5) * widths[None]
