# SPDX-License-Identifier: Apache-2.0
"""Columns of tables are coordinates by name; labels of rows are none."""

import json

import numpy as np
import pytest

from scorejax.bregman import index_files
from scorejax.bregman.table_rows import Rows, in_order_of, read_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(300, 5))
QUERIES = POINTS[:7] + 0.01 * RNG.normal(size=(7, 5))
NAMES = [f"f{i}" for i in range(5)]


def write(path, columns, labels=None):
    """A table, with the columns of row labels named in the metadata as pandas does it."""
    table = pa.table(columns)
    if labels is not None:
        pandas = {"index_columns": labels, "column_indexes": [], "columns": []}
        table = table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})
    parquet.write_table(table, path)
    return str(path)


def columns_of(values, names=NAMES):
    return dict(zip(names, values.T, strict=True))


@pytest.mark.parametrize(
    ("label", "labels"),
    [("__index_level_0__", ["__index_level_0__"]), ("id", ["id"]), ("__index_level_0__", None)],
)
def test_row_labels_are_no_coordinate(label, labels, tmp_path):
    columns = {label: 1000 * np.arange(300), **columns_of(POINTS)}
    rows = read_rows(write(tmp_path / "p.parquet", columns, labels), flag="points")
    np.testing.assert_array_equal(rows.values, POINTS)
    assert rows.columns == tuple(NAMES)


def test_a_range_of_labels_has_no_column(tmp_path):
    labels = [{"kind": "range", "start": 0, "stop": 300, "step": 1}]
    path = write(tmp_path / "p.parquet", columns_of(POINTS), labels)
    np.testing.assert_array_equal(read_rows(path, flag="points").values, POINTS)


def test_queries_are_matched_by_name_to_the_points_of_an_index(tmp_path):
    label = "__index_level_0__"
    points = write(
        tmp_path / "p.parquet", columns_of(POINTS) | {label: np.arange(300)}, labels=[label]
    )
    options = {"divergence": "squared_euclidean", "options": "{}", "side": "data_first"}
    sizes = {"num_parts": 1, "leaf_size": 64, "page_bytes": 4096, "seed": 0}
    index_files.prepare_build(str(tmp_path / "index"), points=points, **options, **sizes)()
    assert index_files.describe(tmp_path / "index")["columns"] == NAMES
    turned = columns_of(QUERIES[:, ::-1], NAMES[::-1]) | {label: np.arange(7)}
    np.save(tmp_path / "q.npy", QUERIES)  # without names: in order
    truth = np.argsort(((QUERIES[:, None] - POINTS) ** 2).sum(-1), axis=1)[:, :3]
    options = {"k": 3, "filter": "auto", "p": None, "calibration": None}
    search = lambda queries: index_files.prepare_search(
        str(tmp_path / "index"), queries=queries, out=str(tmp_path / "found"), **options
    )
    for queries in (write(tmp_path / "q.parquet", turned, [label]), str(tmp_path / "q.npy")):
        search(queries)()
        with np.load(tmp_path / "found.npz") as found:
            np.testing.assert_array_equal(found["ids"], truth)
    other = write(tmp_path / "o.parquet", columns_of(QUERIES, [*NAMES[:4], "size"]))
    with pytest.raises(ValueError, match=r"o\.parquet lacks the column 'f4'; the points .* f0, f1"):
        search(other)
    more = write(tmp_path / "m.parquet", columns_of(QUERIES) | {"y": np.arange(7.0)})
    with pytest.raises(ValueError, match=r"m\.parquet has the further column 'y'"):
        search(more)


def test_indexes_without_names_take_columns_in_order():
    rows = Rows(QUERIES, tuple(NAMES))
    assert in_order_of(rows, None, what="queries") is QUERIES


@pytest.mark.parametrize(
    ("columns", "labels", "words"),
    [
        ({}, None, "needs rows and columns of numbers; got 0 rows of 0 columns"),
        (columns_of(POINTS[:0]), None, "got 0 rows of 5 columns"),
        ({"id": [1, 2]}, ["id"], "got 2 rows of 0 columns"),
        ({"x": [1.0], "Unnamed: 0": [7]}, None, "a column 'Unnamed: 0', as pandas calls row"),
        ({"x": [1.0], "name": ["a"]}, None, "needs numbers; column 'name' holds string"),
    ],
)
def test_a_table_that_holds_no_points_is_one_line(columns, labels, words, tmp_path):
    path = write(tmp_path / "p.parquet", columns, labels)
    with pytest.raises(ValueError, match=words) as raised:
        read_rows(path, flag="points")
    assert f"--points={path}" in str(raised.value) and "\n" not in str(raised.value)
