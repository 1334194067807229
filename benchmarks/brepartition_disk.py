# SPDX-License-Identifier: Apache-2.0
"""How much do BrePartition, its better filter, a BB-tree, a VA-file and a scan read from the disk?

    python -m benchmarks.brepartition_disk --data=patches,spectra --num_points=1000000 --folder=runs

One row for each method and k: candidates and pages of rows as shares of all, bytes of the index
that the filter reads besides as a share of the rows' bytes, and seconds of a query with everything
cached. Pages are counted, not timed, for every page size at once. Every answer is compared with the
scan's. The answers are in docs/papers/brepartition.md.
"""

import contextlib
import dataclasses
import functools
import pathlib
import resource
import tempfile
import time
from typing import NamedTuple

import numpy as np
from absl import app, flags

from benchmarks import va_file
from benchmarks.bregman_sets import SETS
from scorejax.bregman.divergences import get
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import brepartition, filters, planning, store
from scorejax.bregman.index.pages import PagedRows, page_layout, paged

DATA = flags.DEFINE_list("data", ["patches", "spectra", "normal", "uniform"], "Which sets.")
NUM_POINTS = flags.DEFINE_integer("num_points", 20_000, "Of each set.")
NUM_QUERIES = flags.DEFINE_integer("num_queries", 10, "Of each set.")
K = flags.DEFINE_list("k", ["20", "100"], "Neighbours.")
PAGE_BYTES = flags.DEFINE_list("page_bytes", ["32768", "131072"], "Of a page of rows.")
DIMENSION = flags.DEFINE_integer("dimension", 200, "Of normal and uniform.")
PARTS = flags.DEFINE_list("parts", ["1", "paper", "32"], "Numbers of parts; paper: by its model.")
PAPER_K = flags.DEFINE_list("paper_k", None, "Neighbours with the paper's filter, if not --k.")
BITS = flags.DEFINE_integer("bits", 4, "Of the VA-file, a coordinate; 0: without it.")
FOLDER = flags.DEFINE_string("folder", None, "Keeps what is built, which a later run goes on with.")
SEED = flags.DEFINE_integer("seed", 0, "Of the data.")


@dataclasses.dataclass(frozen=True)
class WatchedRows(PagedRows):
    """Paged rows that record which ones were read."""

    is_read: np.ndarray

    @classmethod
    def watch(cls, rows: PagedRows) -> "WatchedRows":
        fields = (getattr(rows, field.name) for field in dataclasses.fields(PagedRows))
        return cls(*fields, np.zeros(rows.num_rows, bool))

    def take(self, positions):
        self.is_read[positions] = True
        return super().take(positions)

    def page_share(self, page_bytes: int) -> float:
        """Share of the pages of that size that hold a row that was read."""
        row_bytes = self.records.shape[2] * self.records.itemsize
        per_page, _ = page_layout(row_bytes, page_bytes)
        read = len(np.unique(np.flatnonzero(self.is_read) // per_page))
        return read / -(-self.num_rows // per_page)


class Found(NamedTuple):
    """Distances of every query, and mean costs over queries."""

    distances: np.ndarray
    candidates: float
    pages: list[float]
    seconds: float


def answer(rows: PagedRows, queries, search) -> Found:
    """Runs search(watched rows, query) -> (distances, candidates) for one query after another."""
    distances, candidates, pages, seconds = [], [], [], []
    for q in queries:
        watched = WatchedRows.watch(rows)
        start = time.perf_counter()
        found, count = search(watched, q)
        seconds.append(time.perf_counter() - start)
        distances.append(found)
        candidates.append(count / rows.num_rows)
        pages.append([watched.page_share(int(size)) for size in PAGE_BYTES.value])
    mean_pages = np.mean(pages, axis=0).tolist()
    return Found(np.stack(distances), np.mean(candidates), mean_pages, np.mean(seconds))


def report(name: str, k: int, found: Found, expected: Found, index_share: float) -> None:
    """Prints a row. Raises: AssertionError unless the distances are the scan's."""
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-9, atol=1e-12)
    pages = " | ".join(f"{share:.3f}" for share in found.pages)
    print(
        f"| {name} | {k} | {found.candidates:.3f} | {pages} | {index_share:.3f} "
        f"| {found.seconds:.3f} |",
        flush=True,
    )


def index_bytes(index, filter: str) -> int:
    """Largest number of bytes that a filter reads besides rows."""
    tuples, leaves = index.tuples.values.nbytes, index.leaves.nbytes
    if filter == "scan":
        return tuples
    if filter == "sums":
        return leaves + sum(tree.leaves().nbytes for tree in index.trees)
    nodes = sum(tree.nodes.nbytes for tree in index.trees)
    return leaves + nodes + (tuples if filter == "paper" else 0)


def search_index(index, k, filter, bound, rows, q):
    index = dataclasses.replace(index, rows=rows)
    found = brepartition.search(index, q[None], k, filter=filter, bound=bound)
    if filter == "scan":
        rows.is_read[:] = True
    return found.distances[0], int(found.candidates[0])


def search_va_file(file, k, rows, q):
    nearest, reader = va_file.search(file._replace(rows=rows), q.astype(np.float64), k)
    return nearest.distances, reader.num_candidates


def opened(x, divergence: str, folder: pathlib.Path, num_parts: int):
    """The index with that many parts, opened from an earlier run or built."""
    path = folder / f"{num_parts}_parts"
    if path.exists():
        return store.open_index(path, verify=False)
    start, own = time.perf_counter(), time.process_time()
    index = brepartition.build_index(x, divergence, num_parts=num_parts, path=path)
    wall, cpu = time.perf_counter() - start, time.process_time() - own
    print(f"M = {num_parts}: built in {wall:.0f} s ({cpu:.0f} s of processor)", flush=True)
    return index


def compare(x, queries, divergence: str, folder: pathlib.Path) -> None:
    space, sizes = Sided(get(divergence)), [*map(int, K.value)]
    rng = np.random.default_rng(0)
    few = x[np.sort(rng.choice(len(x), min(1000, len(x)), replace=False))].astype(np.float64)
    model = planning.model_num_parts(space, few, num_points=len(x), k=sizes[0], rng=rng)
    print(f"the paper's model: M = {model}", flush=True)
    expected: dict[int, Found] = {}
    chosen = {model if m == "paper" else int(m) for m in PARTS.value} - {None}
    for num_parts in sorted(chosen):
        index = opened(x, divergence, folder, num_parts)
        ways = [] if expected else [("scan", "scan", None)]
        ways += [("BB-tree", "seed", "ball")] if num_parts == 1 else [("paper", "paper", "ball")]
        ways += [("summed boxes", "sums", "box")]
        for title, filter, bound in ways:
            share = index_bytes(index, filter) / x.nbytes
            for k in sizes if filter != "paper" else map(int, PAPER_K.value or K.value):
                find = functools.partial(search_index, index, k, filter, bound)
                found = answer(index.rows, queries, find)
                report(f"{title}, M = {num_parts}", k, found, expected.setdefault(k, found), share)
                if filter == "paper":
                    show_slack(index, queries, k, found.distances[:, -1])
    if BITS.value:
        compare_va_file(x, queries, space, expected)
    print(f"peak {resident_bytes() / 2**30:.1f} GiB", flush=True)


def show_slack(index, queries, k: int, kth: np.ndarray) -> None:
    """Prints the ratio of the paper's searching bound to the k-th distance."""
    bounds = [
        filters.searching_bound(index, filters.index_tuple(index, q), k)[0].radii().sum()
        for q in index.coordinates(queries)
    ]
    slack = np.median(np.array(bounds) / kth)
    print(f"  k = {k}: the searching bound is {slack:.0f} times the k-th distance", flush=True)


def compare_va_file(x, queries, space: Sided, expected: dict[int, Found]) -> None:
    rows = paged(x, int(PAGE_BYTES.value[0]))
    file = va_file.build(x, rows, space, bits=BITS.value)
    for k in expected:
        found = answer(rows, queries, functools.partial(search_va_file, file, k))
        report(f"VA-file, {file.bits} bits", k, found, expected[k], file.index_bytes / x.nbytes)


def resident_bytes() -> int:
    """Peak memory of this process, memory maps included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv) -> None:
    del argv
    for name in DATA.value:
        make, divergence = SETS[name]
        if name in ("normal", "uniform"):
            make = functools.partial(make, dimension=DIMENSION.value)
        rng = np.random.default_rng(SEED.value)
        x, queries = make(rng, NUM_POINTS.value, NUM_QUERIES.value)
        pages = " | ".join(f"pages of {int(size) // 1024} KiB" for size in PAGE_BYTES.value)
        print(f"\n{name}, {divergence}, {x.shape}, {len(queries)} queries")
        print(f"| method | k | candidates | {pages} | index read | seconds |")
        print("|---" * (5 + len(PAGE_BYTES.value)) + "|", flush=True)
        with contextlib.ExitStack() as stack:
            folder = FOLDER.value or stack.enter_context(tempfile.TemporaryDirectory())
            folder = pathlib.Path(folder) / f"{name}_{len(x)}"
            compare(mapped(x, folder / "rows.npy"), queries, divergence, folder)


def mapped(x: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Rows mapped from a file, like rows that do not fit in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, x)
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    app.run(main)
