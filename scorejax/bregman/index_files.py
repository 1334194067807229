# SPDX-License-Identifier: Apache-2.0
"""Indexes from files to files, as `launch.index` builds, searches and describes them.

Points and queries are arrays (n, d) in .npy, which are mapped and not loaded, or tables in
.parquet, see `table_rows`; an index keeps the names of its columns. Neighbours are written to .npz
or .parquet. A `prepare_*` function checks everything first and returns a job, so that a mistake is
found before the work begins; its errors name arguments as the command's flags.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from scorejax.bregman.divergences import get
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import brepartition, planning, store
from scorejax.bregman.scan.ranking import Neighbours
from scorejax.bregman.table_rows import in_order_of, read_rows
from scorejax.choices import require_known
from scorejax.files import import_parquet, save_npz, written_whole

Job = Callable[[], None]


def prepare_build(
    index: str,
    *,
    points: str | None,
    divergence: str,
    options: str,
    side: str,
    num_parts: int,
    leaf_size: int,
    page_bytes: int,
    seed: int,
) -> Job:
    """Checks points and settings; the job builds the index in the folder and prints `describe`.

    `options` is a JSON object of the divergence's options; num_parts 0 leaves it to a measurement.
    Raises: ValueError with one line, or FileNotFoundError for the points.
    """
    _require_paths(points=points)
    if leaf_size < 1:
        raise ValueError(f"--leaf_size needs to be at least 1; got {leaf_size}")
    if seed < 0:
        raise ValueError(f"--seed needs to be at least 0; got {seed}")
    chosen = get(divergence, **_json_object("options", options))
    store.require_free(index)
    rows, columns = read_rows(points, flag="points")
    settings = {"num_parts": num_parts or None, "leaf_size": leaf_size, "page_bytes": page_bytes}
    brepartition.checked_rows(rows, Sided(chosen, side), **settings)

    def job() -> None:
        brepartition.build_index(
            rows, chosen, path=index, side=side, seed=seed, columns=columns, **settings
        )
        print(json.dumps(describe(index), indent=2))

    return job


def prepare_search(
    index: str,
    *,
    queries: str | None,
    out: str | None,
    k: int,
    filter: str,
    p: float | None,
    calibration: str | None,
    verify: bool = True,
) -> Job:
    """Checks index, queries and settings; the job writes the k nearest points of each query.

    Answers are exact, unless `p` is given with a file of queries to learn its radius from, for the
    filter "sums" (which "auto" stands for) or "paper". Columns are matched by name if both have
    names. `verify` checks the digests of the index's files, which takes a reading of them.
    Raises: ValueError with one line, or FileNotFoundError for the queries.
    """
    _require_paths(queries=queries, out=out)
    if (p is None) != (calibration is None):
        raise ValueError("--p and --calibration go together; without both, answers are exact")
    if out.endswith(".parquet"):
        import_parquet()
    opened = store.open_index(index, verify=verify)
    read = lambda path, flag: in_order_of(
        read_rows(path, flag=flag), opened.columns, what=f"--{flag}={path}"
    )
    rows = read(queries, "queries")
    brepartition.check_search(opened, k, p=p, filter=filter)
    opened.coordinates(rows)
    examples, learner = None, "sums" if filter == "auto" else filter
    if calibration is not None:
        examples = read(calibration, "calibration")
        opened.coordinates(examples)
        require_known("filter with --calibration", learner, brepartition.CALIBRATED)

    def job() -> None:
        learnt = examples is not None
        radius = brepartition.calibrate(opened, examples, k, filter=learner) if learnt else None
        used, why = filter, "as asked"
        if learnt:
            used, why = learner, f"its radius for p={p} is learnt from {len(examples)} queries"
        elif filter == "auto":
            used, why = planning.preference(opened, len(rows), k)
        nearest = brepartition.search(opened, rows, k, p=p, filter=filter, calibration=radius)
        print(f"{len(nearest.ids)} queries: {save_neighbours(out, nearest)}")
        print(f"filter {used}: {why}")
        if len(nearest.ids):
            share, pages = nearest.candidates.mean() / opened.num_points, nearest.pages.mean()
            print(f"each: {share:.1%} of the points, {pages:.1f} of {opened.rows.num_pages} pages")

    return job


def prepare_info(index: str) -> Job:
    """The job prints `describe`. Raises: ValueError if the folder holds no index."""
    report = describe(index)
    return lambda: print(json.dumps(report, indent=2))


def describe(index: str | os.PathLike) -> dict[str, Any]:
    """Settings and sizes of an index in a folder, and the shares of it that its filter reads.

    Raises: ValueError if the folder holds no index, or a damaged one.
    """
    meta = store.read_meta(index)
    sizes = {name: file["bytes"] for name, file in meta.pop("files").items()}
    shares = meta.pop("shares") or [[]] * 3
    names = ("k", "candidates", "pages")
    expected = [dict(zip(names, row, strict=True)) for row in zip(*shares, strict=True)]
    return meta | {"expected_shares": expected, "bytes": sizes, "total_bytes": sum(sizes.values())}


def save_neighbours(out: str, neighbours: Neighbours) -> str:
    """Writes neighbours atomically and returns the path, which ends in .parquet or .npz.

    An .npz file holds ids and distances (q, k), candidates and pages (q,); a .parquet file has a
    row for each neighbour: query, rank, id and distance.
    """
    if not out.endswith(".parquet"):
        path = f"{out.removesuffix('.npz')}.npz"
        save_npz(path, **neighbours._asdict())
        return path
    pyarrow = import_parquet()
    num_queries, k = neighbours.ids.shape
    columns = {
        "query": np.repeat(np.arange(num_queries), k),
        "rank": np.tile(np.arange(k), num_queries),
        "ids": neighbours.ids.ravel(),
        "distances": neighbours.distances.ravel(),
    }
    with written_whole(out) as file:
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return out


def _require_paths(**paths: str | None) -> None:
    for flag, path in paths.items():
        if not path:
            raise ValueError(f"--{flag} is missing")


def _json_object(flag: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f'--{flag} needs to be as {{"b": 1.5}}; got {text}')
    return value
