# SPDX-License-Identifier: Apache-2.0
"""Reads resumes, jobs and pairs from the user's own tables, or in published layouts.

A row that cannot be used (see `table_rows`, `matching_rows`) raises an error of one line that names
the file and the row, or is left out and listed, as the caller chooses.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scorejax.choices import choose
from scorejax.data import matching_lists, matching_rows
from scorejax.data.folder_contents import visible_files
from scorejax.data.matching import Documents, Matching, Split, concatenate
from scorejax.data.matching_rows import (
    DOCUMENT_COLUMNS,
    PAIR_COLUMNS,
    DocumentColumns,
    PairColumns,
    SplitText,
)
from scorejax.data.table_rows import DamagedRows, Row, Table, read_tabbed, read_table
from scorejax.text import sentences


class Reading(NamedTuple):
    """Documents and pairs, their published split if there is one, a line for each row left out."""

    matching: Matching
    split: Split | None
    skipped: tuple[str, ...]


def read_documents(
    path: str | os.PathLike,
    columns: DocumentColumns = DOCUMENT_COLUMNS,
    *,
    damaged: str = "raise",
    split_text: SplitText = sentences.split,
) -> tuple[Documents, tuple[str, ...]]:
    """Documents of a .csv, .jsonl or .parquet file, and a line for each row left out.

    Raises: ValueError, one line that names the file and the row or column.
    """
    rows = DamagedRows(damaged)
    documents = matching_rows.documents(read_table(path, rows), columns, rows, split_text)
    return documents, tuple(rows.lines)


def read_tables(
    resumes: str | os.PathLike,
    jobs: str | os.PathLike,
    pairs: str | os.PathLike,
    *,
    resume_columns: DocumentColumns = DOCUMENT_COLUMNS,
    job_columns: DocumentColumns = DOCUMENT_COLUMNS,
    pair_columns: PairColumns = PAIR_COLUMNS,
    damaged: str = "raise",
    split_text: SplitText = sentences.split,
) -> Reading:
    """Reads the user's own three files, each .csv, .jsonl or .parquet.

    `damaged` "skip" leaves out rows that cannot be used and lists them. Raises: ValueError, one
    line that names the file and the row or column; and as `Matching`.
    """
    rows = DamagedRows(damaged)
    job_documents = matching_rows.documents(read_table(jobs, rows), job_columns, rows, split_text)
    resume_documents = matching_rows.documents(
        read_table(resumes, rows), resume_columns, rows, split_text, job_documents.categories
    )
    tables = [read_table(pairs, rows)]
    return _reading(resume_documents, job_documents, tables, pair_columns, rows)


def read_confit(
    folder: str | os.PathLike, *, damaged: str = "raise", split_text: SplitText = sentences.split
) -> Reading:
    """Reads the layout of ConFit's published data, a column for each section of a document.

    all_resume.csv and all_jd.csv, with train_labeled_data.jsonl, valid_classification_data.jsonl
    and test_classification_data.jsonl; and rank_job.json and rank_resume.json where they are there,
    see `matching_lists`, without pairs of the first two. Raises: as `read_tables`, and as
    `matching_lists.read_lists`. Source: arXiv:2401.16349.
    """
    folder, rows = pathlib.Path(folder).expanduser(), DamagedRows(damaged)
    documents = [
        matching_rows.documents(
            read_table(folder / name, rows), DocumentColumns(key, ()), rows, split_text
        )
        for name, key in (("all_resume.csv", "user_id"), ("all_jd.csv", "jd_no"))
    ]
    names = "train_labeled_data", "valid_classification_data", "test_classification_data"
    tables = [read_table(folder / f"{name}.jsonl", rows) for name in names]
    columns = PairColumns("user_id", "jd_no", ("satisfied",))
    return _reading(*documents, tables, columns, rows, matching_lists.read_lists(folder, rows))


def read_recbole(folder: str | os.PathLike, *, damaged: str = "raise") -> Reading:
    """Reads the atomic files of RecBole-PJF: one .inter, one .udoc and one .idoc.

    Headers are `name:type`; a document has a row for each sentence. Users are resumes, items are
    jobs, and who of the two acted, `direct`, is not used. Without a column `label`, each pair is
    positive. Raises: ValueError, one line that names the file and the row or column.
    """
    folder, rows = pathlib.Path(folder).expanduser(), DamagedRows(damaged)
    users, items, pairs = (
        _untyped(read_tabbed(_only(folder, suffix), rows)) for suffix in ("udoc", "idoc", "inter")
    )
    documents = [
        matching_rows.documents_of_sentences(table, *table.columns[:2], rows)
        for table in (users, items)
    ]
    label = ("label",) if "label" in pairs.columns else ()
    columns = PairColumns(users.columns[0], items.columns[0], label)
    if "timestamp" in pairs.columns:
        columns = dataclasses.replace(columns, time="timestamp")
    return _reading(*documents, [pairs], columns, rows)


def read_official(folder: str | os.PathLike, *, damaged: str = "raise") -> Reading:
    """Reads the layout of the code of arXiv:2009.13299.

    geek.sent.id and job.sent.id have lines `id<TAB>tokens`, one for each sentence of a document;
    data.train, data.valid and data.test have lines `resume<TAB>job<TAB>label`. Raises: ValueError,
    one line that names the file and the row.
    """
    folder, rows = pathlib.Path(folder).expanduser(), DamagedRows(damaged)
    documents = [
        matching_rows.documents_of_sentences(
            read_tabbed(folder / f"{kind}.sent.id", rows, ("id", "text")), "id", "text", rows
        )
        for kind in ("geek", "job")
    ]
    columns = PairColumns()
    names = (columns.resume, columns.job, *columns.label)
    parts = ("train", "valid", "test")
    tables = [read_tabbed(folder / f"data.{part}", rows, names) for part in parts]
    return _reading(*documents, tables, columns, rows)


LAYOUTS: dict[str, Callable[..., Reading]] = {
    "confit": read_confit,
    "recbole": read_recbole,
    "official": read_official,
}
"""Readers of a folder, (folder, damaged=...) -> `Reading`, by the name of its layout."""


def read(folder: str | os.PathLike, layout: str, *, damaged: str = "raise") -> Reading:
    """Reads a folder in one of `LAYOUTS`. Raises: ValueError for an unknown one; as its reader."""
    return choose("layout", layout, LAYOUTS)(folder, damaged=damaged)


def _only(folder: pathlib.Path, suffix: str) -> pathlib.Path:
    paths = visible_files(folder, (f".{suffix}",), deep=False)
    if len(paths) != 1:
        raise ValueError(f"{folder} needs one file *.{suffix}; got {len(paths)}")
    return paths[0]


def _untyped(table: Table) -> Table:
    """The table without the types that follow a colon in names of columns."""
    names = {column: column.split(":")[0] for column in table.columns}
    if len(names) < 2:
        raise ValueError(f"{table.path} needs two columns or more; got {', '.join(names)}")
    rows = [
        Row(n, {names[column]: cell for column, cell in cells.items()}) for n, cells in table.rows
    ]
    return Table(table.path, tuple(names.values()), rows)


def _reading(
    resumes: Documents,
    jobs: Documents,
    tables: Sequence[Table],
    columns: PairColumns,
    damaged: DamagedRows,
    listed: Mapping[str, Table] | None = None,
) -> Reading:
    """Joins pairs to documents; of three tables, the published split, with its lists."""
    rows = resumes.rows, jobs.rows
    parts, earlier, before_test = [], {}, {}
    for table in tables:
        before_test = dict(earlier)
        found = matching_rows.pairs(table, rows, columns, damaged, earlier)
        parts.append(matching_rows.as_pairs(found))
        earlier |= found
    lists = {}
    for side, table in (listed or {}).items():
        listed_pairs = matching_rows.pairs(table, rows, columns, damaged, before_test)
        lists[side] = matching_rows.as_pairs(listed_pairs)
        if not lists[side].positive.any():
            raise ValueError(f"{table.path} needs a candidate with label 1; there is none")
    matching = Matching(resumes, jobs, concatenate(parts))
    split = Split(*parts, lists) if len(parts) == 3 else None
    return Reading(matching, split, tuple(damaged.lines))
