# SPDX-License-Identifier: Apache-2.0
"""Resumes, jobs and pairs from rows of tables, row by row; each row that cannot be used is noted.

Those are rows with an id that occurs twice, a document without text, a resume whose category no job
has, a pair of a document that is not there, a label that is not 0 or 1, a pair with both labels. A
pair that is repeated counts once, at its first time.
"""

import dataclasses
import datetime
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scorejax.data.matching import Documents, Pairs
from scorejax.data.table_rows import DamagedRows, Table

LABELS = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
SplitText = Callable[[str], Sequence[str]]
"""Text -> its sentences."""


@dataclasses.dataclass(frozen=True)
class DocumentColumns:
    """Names of the columns of resumes or jobs.

    The text is that of all columns of `text`, in order; () takes all but the other two. Without a
    column of its default name, documents have no category.
    """

    id: str = "id"
    text: tuple[str, ...] = ("text",)
    category: str = "category"


@dataclasses.dataclass(frozen=True)
class PairColumns:
    """Names of the columns of pairs.

    A pair is positive if each column of `label` says so, as where both sides are asked; with (),
    each pair is. Times are numbers or ISO 8601, then seconds since 1970, UTC unless they say; pairs
    without a column of the default name have none.
    """

    resume: str = "resume_id"
    job: str = "job_id"
    label: tuple[str, ...] = ("label",)
    time: str = "time"


DOCUMENT_COLUMNS = DocumentColumns()
PAIR_COLUMNS = PairColumns()


class _Found(NamedTuple):
    """A document, and the row on which it begins."""

    row: int
    sentences: tuple[str, ...]
    category: str = ""


def documents(
    table: Table,
    columns: DocumentColumns,
    damaged: DamagedRows,
    split_text: SplitText,
    known: Iterable[str] = (),
) -> Documents:
    """Documents of a table with a row for each; of `known` categories, if any of them is named."""
    has_category = table.has(columns.category, DOCUMENT_COLUMNS.category)
    others = [name for name in table.columns if name not in (columns.id, columns.category)]
    text = columns.text or others
    table.require(columns.id, *text)
    known, found = set(known) - {""}, {}
    for number, cells in table.rows:
        name, category = cells[columns.id].strip(), ""
        if has_category:
            category = cells[columns.category].strip()
        sentences = [s.strip() for column in text for s in split_text(cells[column])]
        if name in found:
            problem = f"needs an id of its own; {name!r} is that of row {found[name].row}"
            damaged.add(table.path, number, problem)
        elif category and known and category not in known:
            damaged.add(table.path, number, f"category {category!r} of {name!r} is without jobs")
        else:
            found[name] = _Found(number, tuple(filter(None, sentences)), category)
    return _nonempty(table.path, found, damaged)


def documents_of_sentences(table: Table, key: str, text: str, damaged: DamagedRows) -> Documents:
    """Documents of a table with a row for each sentence."""
    found: dict[str, _Found] = {}
    for number, cells in table.rows:
        name, sentence = cells[key].strip(), cells[text].strip()
        row, sentences, _ = found.get(name, _Found(number, ()))
        found[name] = _Found(row, sentences + (sentence,) * bool(sentence))
    return _nonempty(table.path, found, damaged)


def _nonempty(path: pathlib.Path, found: Mapping[str, _Found], damaged: DamagedRows) -> Documents:
    kept = {}
    for name, document in found.items():
        if not name:
            damaged.add(path, document.row, "needs an id; got none")
        elif not document.sentences:
            damaged.add(path, document.row, f"needs text; {name!r} is empty")
        else:
            kept[name] = document
    sentences = tuple(document.sentences for document in kept.values())
    return Documents(tuple(kept), sentences, tuple(d.category for d in kept.values()))


class LabelledPair(NamedTuple):
    """A label and a time, and where they stand."""

    label: float
    time: float | None
    place: str
    """File and row."""


Key = tuple[int, int]
"""Rows of the resume and of the job."""


def pairs(
    table: Table,
    rows: tuple[dict[str, int], dict[str, int]],
    columns: PairColumns,
    damaged: DamagedRows,
    earlier: Mapping[Key, LabelledPair],
) -> dict[Key, LabelledPair]:
    """Pairs of a table by their rows, without those of `earlier` tables."""
    table.require(columns.resume, columns.job, *columns.label)
    time_column = columns.time if table.has(columns.time, PAIR_COLUMNS.time) else None
    found: dict[Key, LabelledPair] = {}
    for number, cells in table.rows:
        try:
            ids = cells[columns.resume].strip(), cells[columns.job].strip()
            key = _known_row("resume", ids[0], rows[0]), _known_row("job", ids[1], rows[1])
            label = min((_label(cells[name]) for name in columns.label), default=1.0)
            time = None if time_column is None else _time(cells[time_column])
            before = found.get(key) or earlier.get(key)
            if before and before.label != label:
                raise ValueError(f"{ids} has label {label:g}; {before.place} has {before.label:g}")
            if key in earlier:
                raise ValueError(f"{ids} needs one part of the split; {before.place} has it too")
        except ValueError as error:
            damaged.add(table.path, number, str(error))
            continue
        if before and time is not None:
            time = min(time, before.time)
        place = before.place if before else f"{table.path.name}, row {number},"
        found[key] = LabelledPair(label, time, place)
    return found


def as_pairs(found: Mapping[Key, LabelledPair]) -> Pairs:
    """The pairs as arrays, in the order in which they were found."""
    keys = np.array(list(found), np.int32).reshape(-1, 2)
    times = [pair.time for pair in found.values()]
    timed = bool(times) and None not in times
    labels = np.array([pair.label for pair in found.values()])
    return Pairs(keys[:, 0], keys[:, 1], labels, np.array(times) if timed else None)


def _known_row(kind: str, name: str, rows: Mapping[str, int]) -> int:
    if name not in rows:
        raise ValueError(f"{kind} {name!r} is unknown: no usable row of the {kind}s has this id")
    return rows[name]


def _label(cell: str) -> float:
    label = LABELS.get(cell.strip().lower())
    if label is None:
        raise ValueError(f"a label needs to be 0 or 1; got {cell!r}")
    return label


def _time(cell: str) -> float:
    for read in (float, _seconds):
        try:
            time = read(cell.strip())
        except ValueError:
            continue
        if math.isfinite(time):
            return time
    raise ValueError(f"a time needs to be a finite number or ISO 8601; got {cell!r}")


def _seconds(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 date."""
    read = datetime.datetime.fromisoformat(text)
    return read.replace(tzinfo=read.tzinfo or datetime.UTC).timestamp()
