# SPDX-License-Identifier: Apache-2.0
"""Are ten million rows on a disk indexed and searched within 24 GiB?

    python -m benchmarks.brepartition_scale --folder=/scratch

Writes rows to a file, a block at a time; builds the index from their memory map; opens it and
searches it, single queries by summed bounds and 64 by a scan; compares some answers with brute
force. Prints seconds and the peaks of memory: all that was resident, mapped pages of files
included, and what the process had of its own. The answers are in docs/papers/brepartition.md.
"""

import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from scorejax.bregman.divergences import get
from scorejax.bregman.index import brepartition, store

NUM_POINTS = flags.DEFINE_integer("num_points", 10_000_000, "Rows.")
DIMENSION = flags.DEFINE_integer("dimension", 64, "Columns, float32.")
FACTORS = flags.DEFINE_integer("factors", 6, "Of the data: the dimension near which they lie.")
DIVERGENCE = flags.DEFINE_string("divergence", "squared_euclidean", "Its name.")
PARTS = flags.DEFINE_integer("parts", 2, "Of the columns.")
LEAF_SIZE = flags.DEFINE_integer("leaf_size", 512, "Points of a leaf, at most.")
NUM_QUERIES = flags.DEFINE_integer("num_queries", 10, "Single ones.")
K = flags.DEFINE_integer("k", 20, "Neighbours.")
FOLDER = flags.DEFINE_string(
    "folder", None, "Keeps rows and index, which a later run goes on with."
)
BLOCK = 2**18


class Spectra:
    """Rows exp(z W + noise): positive, and correlated through a few factors."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)
        self._loadings = np.random.default_rng(0).normal(size=(FACTORS.value, DIMENSION.value))

    def draw(self, num: int) -> np.ndarray:
        factors = self._rng.normal(size=(num, FACTORS.value))
        noise = self._rng.standard_normal((num, DIMENSION.value), dtype=np.float32)
        return np.exp(0.5 * (factors @ self._loadings) + 0.1 * noise).astype(np.float32)


def write_rows(path: pathlib.Path) -> None:
    """Writes the rows, with at most one block of them in memory."""
    shape = NUM_POINTS.value, DIMENSION.value
    data = Spectra(seed=1)
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, shape[0], BLOCK):
            file.write(data.draw(min(BLOCK, shape[0] - start)).data)


def peaks() -> str:
    """Peak memory of all kinds, and the current private memory of the process."""
    status = dict(
        line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines()
    )
    own, high = (int(status[name].split()[0]) / 2**20 for name in ("RssAnon", "VmHWM"))
    return f"resident at most {high:.1f} GiB, of its own now {own:.1f} GiB"


def timed(what: str, step):
    """Runs a step and returns its value; prints its wall-clock and processor seconds."""
    start, own = time.perf_counter(), time.process_time()
    result = step()
    wall, cpu = time.perf_counter() - start, time.process_time() - own
    print(f"{what}: {wall:.1f} s ({cpu:.1f} s of processor); {peaks()}", flush=True)
    return result


def brute_force(rows, q) -> np.ndarray:
    """The k smallest distances over all rows, by brute force."""
    divergence, nearest = get(DIVERGENCE.value), np.empty(0)
    for start in range(0, len(rows), BLOCK):
        block = divergence.divergence(rows[start : start + BLOCK], q[None])
        nearest = np.sort(np.concatenate([nearest, block]))[: K.value]
    return nearest


def search(index, queries, filter: str):
    found = brepartition.search(index, queries, K.value, filter=filter)
    shares = found.candidates.mean() / index.num_points, found.pages.mean() / index.rows.num_pages
    print(f"{len(queries)} queries, {filter}: candidates {shares[0]:.4f}, pages {shares[1]:.4f}")
    return found


def run(folder: pathlib.Path) -> None:
    path = folder / "rows.npy"
    if not path.exists():
        timed("rows written", lambda: write_rows(path))
    rows = np.load(path, mmap_mode="r")
    if not (folder / "index").exists():
        options = {"num_parts": PARTS.value, "leaf_size": LEAF_SIZE.value}
        build = lambda: brepartition.build_index(
            rows, DIVERGENCE.value, path=folder / "index", **options
        )
        timed(f"index of {rows.shape} built", build)
    index = timed("opened, every file checked", lambda: store.open_index(folder / "index"))
    queries = Spectra(seed=2).draw(64)
    few = queries[: NUM_QUERIES.value]
    by_bounds = timed("searched one by one", lambda: search(index, few, "sums"))
    scanned = timed("scanned for 64 at once", lambda: search(index, queries, "scan"))
    np.testing.assert_allclose(by_bounds.distances, scanned.distances[: len(few)], rtol=1e-9)
    expected = timed("brute force for one", lambda: brute_force(rows, few[0].astype(np.float64)))
    np.testing.assert_allclose(by_bounds.distances[0], expected, rtol=1e-9)
    print("all answers agree")


def main(argv) -> None:
    del argv
    if FOLDER.value:
        pathlib.Path(FOLDER.value).mkdir(parents=True, exist_ok=True)
        run(pathlib.Path(FOLDER.value))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(pathlib.Path(folder))


if __name__ == "__main__":
    app.run(main)
