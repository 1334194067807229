# SPDX-License-Identifier: Apache-2.0
"""Rows of text cells of CSV, JSONL, parquet and tab-separated files; errors name file and row.

Rows are numbered as editors show them: by the line on which they begin, from 1, the header
included. Those of parquet, which has no lines, are counted from 1.
"""

import csv
import io
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from scorejax.choices import choose, require_known
from scorejax.data.picture_files import DAMAGED
from scorejax.files import import_parquet

_UNDECODED = re.compile("[\ud800-\udfff]")


class DamagedRows:
    """Raises at the first damaged row, or lists one line for each in `lines`.

    Raises: ValueError for an unknown way with damaged rows.
    """

    def __init__(self, way: str) -> None:
        require_known("way with damaged rows", way, DAMAGED)
        self.way = way
        self.lines: list[str] = []

    def add(self, path: os.PathLike, row: int, problem: str) -> None:
        """Raises ValueError with file, row and problem, or notes them."""
        line = f"{path}, row {row}: {problem}"
        if self.way == "raise":
            raise ValueError(line)
        self.lines.append(line)


class Row(NamedTuple):
    """The cells of a row by column, and its number."""

    number: int
    cells: dict[str, str]


class Table(NamedTuple):
    """Names of the columns of a file, and its undamaged rows."""

    path: pathlib.Path
    columns: tuple[str, ...]
    rows: list[Row]

    def require(self, *columns: str) -> None:
        """Raises ValueError naming the file, unless it has all these columns."""
        for column in columns:
            require_known(f"column of {self.path}", column, self.columns)

    def has(self, column: str, default: str) -> bool:
        """Whether an optional column is there.

        Raises: ValueError if it is missing and has another name than its default.
        """
        if column != default:
            self.require(column)
        return column in self.columns


def read_table(path: str | os.PathLike, damaged: DamagedRows) -> Table:
    """Reads a .csv, .jsonl or .parquet file; a cell without a value is "".

    Text is UTF-8, numbers are written without a needless ".0". Raises: ValueError, one line, for
    another suffix, a file that is not of its kind or has no rows, and as `damaged` for rows.
    """
    path = pathlib.Path(path).expanduser()
    read = choose("suffix of a table", path.suffix.lower(), _READERS)
    if not path.is_file():
        raise ValueError(f"{path} needs to be a file; it is not there")
    return _with_rows(read(path, damaged))


def read_tabbed(
    path: pathlib.Path, damaged: DamagedRows, columns: Sequence[str] | None = None
) -> Table:
    """Reads tab-separated text, in which quotation marks are text.

    Columns are named by the first line, unless they are given. Raises: as `read_table`.
    """
    if not path.is_file():
        raise ValueError(f"{path} needs to be a file; it is not there")
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    return _with_rows(_delimited(path, damaged, columns, **style))


def _with_rows(table: Table) -> Table:
    if not table.rows:
        raise ValueError(f"{table.path} has no rows that can be used")
    return table


def _csv(path: pathlib.Path, damaged: DamagedRows) -> Table:
    return _delimited(path, damaged, None, strict=True)


def _delimited(
    path: pathlib.Path, damaged: DamagedRows, columns: Sequence[str] | None, **style: Any
) -> Table:
    text = read_text(path)
    records = _records(path, text, damaged, style)
    if columns is None:
        number, columns = next(records, (1, []))
        if problem := _undecoded((column, column) for column in columns):
            raise ValueError(f"{path}, row {number}: {problem}")
        if len(set(columns)) < len(columns):
            twice = next(column for column in columns if columns.count(column) > 1)
            raise ValueError(f"{path}, row {number}: needs each column once; got {twice!r} twice")
    rows, any_undecoded = [], _UNDECODED.search(text) is not None
    for number, cells in records:
        if len(cells) != len(columns):
            damaged.add(path, number, f"needs {len(columns)} cells; got {len(cells)}")
        elif any_undecoded and (problem := _undecoded(zip(columns, cells, strict=True))):
            damaged.add(path, number, problem)
        else:
            rows.append(Row(number, dict(zip(columns, cells, strict=True))))
    return Table(path, tuple(columns), rows)


def _records(
    path: pathlib.Path, text: str, damaged: DamagedRows, style: dict[str, Any]
) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each record; after a broken one, goes on with the next line."""
    lines = list(io.StringIO(text, newline=""))
    start = 0
    while start < len(lines):
        reader, first = csv.reader(itertools.islice(lines, start, None), **style), start
        try:
            for cells in reader:
                if cells:
                    yield first + 1, cells
                first = start + reader.line_num
            return
        except csv.Error as error:
            # A quotation mark that is not closed takes the lines after it along.
            damaged.add(path, first + 1, f"is no CSV: {error}")
            start = first + 1


def _jsonl(path: pathlib.Path, damaged: DamagedRows) -> Table:
    rows = []
    for number, line in enumerate(io.StringIO(read_text(path)), start=1):
        if not line.strip():
            continue
        if problem := _undecoded([("", line)]):
            damaged.add(path, number, problem)
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            damaged.add(path, number, f"is no JSON: {error}")
            continue
        if isinstance(values, dict):
            rows += _row(path, damaged, number, values.items())
        else:
            damaged.add(path, number, f"needs a JSON object; got {type(values).__name__}")
    # Keys without a value may be left out of a line.
    columns = tuple(dict.fromkeys(itertools.chain.from_iterable(row.cells for row in rows)))
    rows = [Row(number, dict.fromkeys(columns, "") | cells) for number, cells in rows]
    return Table(path, columns, rows)


def _parquet(path: pathlib.Path, damaged: DamagedRows) -> Table:
    pyarrow = import_parquet()
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException:
        raise ValueError(f"{path} is no parquet file") from None
    columns, rows = tuple(table.column_names), []
    for index in range(table.num_rows):
        values = []
        for column in columns:
            try:
                values.append((column, table[column][index].as_py()))
            except UnicodeDecodeError as error:
                damaged.add(path, index + 1, _no_utf8(error.object[error.start], column))
                break
        else:
            rows += _row(path, damaged, index + 1, values)
    return Table(path, columns, rows)


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _row(
    path: pathlib.Path, damaged: DamagedRows, number: int, values: Iterable[tuple[str, Any]]
) -> list[Row]:
    """The row of some values, or none if it is damaged."""
    cells = {}
    for column, value in values:
        if isinstance(value, (list, dict)):
            problem = f"needs text or a number in column {column!r}; got {type(value).__name__}"
            damaged.add(path, number, problem)
            return []
        cells[column] = _cell(value)
    return [Row(number, cells)]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # Whole numbers turn to floats wherever a value of their column is missing.
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return str(value)


def read_text(path: pathlib.Path) -> str:
    """Text of UTF-8; of other bytes each is a surrogate. Raises: ValueError for UTF-16."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:1000]:
        raise ValueError(f"{path}, row 1: needs UTF-8; got UTF-16 or no text. Save it as UTF-8")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _undecoded(cells: Iterable[tuple[str, str]]) -> str:
    """The problem of the first cell with bytes that are no UTF-8, or ""."""
    for column, cell in cells:
        if bad := _UNDECODED.search(cell):
            return _no_utf8(ord(bad[0]) & 0xFF, column)
    return ""


def _no_utf8(byte: int, column: str) -> str:
    where = f" in column {column!r}" if column else ""
    return f"needs UTF-8; got byte 0x{byte:02x}{where}. Save the file as UTF-8"
