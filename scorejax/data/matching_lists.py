# SPDX-License-Identifier: Apache-2.0
"""Reads ConFit's lists of candidates, which say whom a test query is ranked among.

rank_job.json is {user_id: {"jd_nos": [..], "satisfied": [..]}}, jobs that are listed for a resume;
rank_resume.json is {jd_no: {"user_ids": [..], "satisfied": [..]}}. A label is 1 for a match, 0 for
none, and -1 for a candidate that was drawn at random, which counts as none there and here.
Source: arXiv:2401.16349 and its code.
"""

import json
import pathlib

from scorejax.data.table_rows import DamagedRows, Row, Table, read_text

LABELS = {1: "1", 0: "0", -1: "0"}
FILES = {
    "resume": ("rank_job.json", "user_id", "jd_no", "jd_nos"),
    "job": ("rank_resume.json", "jd_no", "user_id", "user_ids"),
}
"""Side of the queries -> the file, the columns of queries and of candidates, and their key."""


def read_lists(folder: pathlib.Path, damaged: DamagedRows) -> dict[str, Table]:
    """By side of the queries, a table with a row for each candidate, of the files that are there.

    Rows have the number of their query, counted from 1. A query that cannot be used is damage.
    Raises: ValueError, one line that names the file, if it is no JSON object.
    """
    tables = {}
    for side, (name, query_column, column, key) in FILES.items():
        path = folder / name
        if not path.is_file():
            continue
        try:
            queries = json.loads(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(queries, dict):
            raise ValueError(f"{path} needs a JSON object; got {type(queries).__name__}")
        rows = []
        for number, (query, listed) in enumerate(queries.items(), start=1):
            problem = _problem(listed, key)
            if problem:
                damaged.add(path, number, f"query {query!r} {problem}")
                continue
            for candidate, label in zip(listed[key], listed["satisfied"], strict=True):
                cells = {query_column: query, column: str(candidate), "satisfied": LABELS[label]}
                rows.append(Row(number, cells))
        tables[side] = Table(path, (query_column, column, "satisfied"), rows)
    return tables


def _problem(listed: object, key: str) -> str:
    """Names the fault of the entry of a query, or returns ""."""
    parts = [listed.get(name) for name in (key, "satisfied")] if isinstance(listed, dict) else []
    if len(parts) < 2 or not all(isinstance(part, list) for part in parts):
        return f"needs lists {key!r} and 'satisfied'"
    ids, labels = parts
    if len(ids) != len(labels):
        return f"needs a label for each candidate; got {len(ids)} and {len(labels)}"
    wrong = [label for label in labels if not isinstance(label, int) or label not in LABELS]
    return f"needs labels 1, 0 or -1; got {wrong[0]!r}" if wrong else ""
