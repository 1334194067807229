# SPDX-License-Identifier: Apache-2.0
"""Points and queries in files: what of a table is a coordinate, and which coordinate it is.

Every column of a .parquet table is one, except row labels, which pandas writes as a column; columns
have names. An array in .npy has columns in an order, without names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Real

from scorejax.files import disguise, import_parquet

_LABELS, _LABELS_OF_CSV = "__index_level_", "Unnamed: "
"""How pandas begins the names of columns that hold row labels without a name."""


class Rows(NamedTuple):
    """Rows (n, d), and the names of the columns, None if the file has none."""

    values: Real[np.ndarray, "n d"]
    columns: tuple[str, ...] | None


def read_rows(path: str, *, flag: str) -> Rows:
    """The array of a .npy file, mapped, or the columns of a .parquet file without row labels.

    Raises: ValueError, which names the flag, for another kind of file, a table without rows or
    columns, or a column that has no numbers; FileNotFoundError.
    """
    if path.endswith(".parquet"):
        return _read_parquet(path, f"--{flag}={path}")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        values = None
    if not isinstance(values, np.ndarray):
        kind = disguise(path) or "no array in .npy or .parquet"
        raise ValueError(f"--{flag}={path} is {kind}")
    return Rows(values, None)


def in_order_of(rows: Rows, columns: Sequence[str] | None, *, what: str) -> Real[np.ndarray, "n d"]:
    """The values with columns in the order of an index, found by name where both have names.

    Raises: ValueError, one line that begins with `what`, if the names are others.
    """
    if columns is None or rows.columns is None:
        return rows.values
    for names, problem in (
        ([name for name in columns if name not in rows.columns], "lacks the column"),
        ([name for name in rows.columns if name not in columns], "has the further column"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"{what} {problem} {names[0]!r}{more}; the points of the index have "
                f"{', '.join(columns)}"
            )
    return rows.values[:, [rows.columns.index(name) for name in columns]]


def _read_parquet(path: str, what: str) -> Rows:
    pyarrow = import_parquet()
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException:
        raise ValueError(f"{what} is {disguise(path) or 'no parquet file'}") from None
    pandas = table.schema.pandas_metadata or {}
    # A range of labels is described there by a dictionary, and has no column.
    labels = {label for label in pandas.get("index_columns", ()) if isinstance(label, str)}
    names = [n for n in table.column_names if n not in labels and not n.startswith(_LABELS)]
    if not names or not table.num_rows:
        raise ValueError(
            f"{what} needs rows and columns of numbers; got {table.num_rows} rows of {len(names)} "
            "columns"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} needs a name for each column; got two of {twice!r}")
    return Rows(np.stack([_numbers(table, name, what) for name in names], axis=1), tuple(names))


def _numbers(table: Any, name: str, what: str) -> Real[np.ndarray, "n"]:
    if name.startswith(_LABELS_OF_CSV):
        raise ValueError(
            f"{what} has a column {name!r}, as pandas calls row labels of a CSV file; drop or "
            "rename it"
        )
    values = np.asarray(table.column(name))
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{what} needs numbers; column {name!r} holds {table.field(name).type}")
    return values
