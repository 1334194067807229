# SPDX-License-Identifier: Apache-2.0
"""How much do BrePartition, its better filter, a BB-tree, a VA-file and a scan read from the disk?

    python -m benchmarks.brepartition_disk --data=patches,spectra,normal,uniform --num_points=100000

Rows of one query: candidates and pages of rows as shares of all, bytes of the index that the filter
reads besides as a share of the rows' bytes, and seconds with everything cached. Pages are counted,
not timed. Every answer is compared with the scan's. The answers are in docs/papers/brepartition.md.
"""

import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import va_file
from scorejax.bregman import brepartition, planning
from scorejax.bregman.divergences import get
from scorejax.bregman.pages import paged
from scorejax.bregman.sided import Sided
from scorejax.data.photographs import photo_patches

DATA = flags.DEFINE_list("data", ["patches", "spectra", "normal", "uniform"], "Which sets.")
NUM_POINTS = flags.DEFINE_integer("num_points", 20_000, "Of each set, or as many as there are.")
NUM_QUERIES = flags.DEFINE_integer("num_queries", 10, "Of each set.")
K = flags.DEFINE_list("k", ["20", "100"], "Neighbours.")
PAGE_BYTES = flags.DEFINE_list("page_bytes", ["32768"], "Of a page of rows.")
DIMENSION = flags.DEFINE_integer("dimension", 200, "Of normal and uniform.")
PARTS = flags.DEFINE_list("parts", ["paper", "8", "32"], "Numbers of parts; paper: by its model.")
BITS = flags.DEFINE_integer("bits", 4, "Of the VA-file, a coordinate.")
FOLDER = flags.DEFINE_string("folder", None, "Of indexes; a temporary one by default.")


def patches(rng, num: int) -> np.ndarray:
    """8 x 8 x 3 patches of seven photographs, levels as intensities in (0, 256]."""
    images = np.concatenate([photo_patches(split)[0] for split in ("train", "test")])
    chosen = images[rng.integers(len(images), size=num)]
    row, column = rng.integers(0, 25, (2, num))
    window = np.arange(8)
    at = np.arange(num)[:, None, None]
    cut = chosen[at, (row[:, None] + window)[:, :, None], (column[:, None] + window)[:, None, :]]
    return cut.reshape(num, -1).astype(np.float32) + 1


def spectra(rng, num: int) -> np.ndarray:
    """Power spectra (128 frequencies) of lines of the photographs, 256 pixels put end to end."""
    images = np.concatenate([photo_patches(split)[0] for split in ("train", "test")])
    lines = images[rng.integers(len(images), size=num), :, :, 1].astype(np.float64)
    lines = lines.reshape(num, -1)[:, :256]
    windowed = (lines - lines.mean(axis=1, keepdims=True)) * np.hanning(256)
    return (np.abs(np.fft.rfft(windowed, axis=1)[:, 1:]) ** 2 + 1).astype(np.float32)


def normal(rng, num: int) -> np.ndarray:
    """The paper's Normal: independent N(0, 1)."""
    return rng.normal(size=(num, DIMENSION.value)).astype(np.float32)


def uniform(rng, num: int) -> np.ndarray:
    """The paper's Uniform: independent, here in [1, 100] so that all are positive."""
    return rng.uniform(1, 100, (num, DIMENSION.value)).astype(np.float32)


SETS = {
    "patches": (patches, "generalized_kl"),
    "spectra": (spectra, "itakura_saito"),
    "normal": (normal, "exponential"),
    "uniform": (uniform, "itakura_saito"),
}


def report(name, found, expected, seconds, num_points, num_pages, index_share) -> None:
    """Prints a row. Raises: AssertionError unless the distances are the scan's."""
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-9, atol=1e-12)
    candidates, pages = found.candidates.mean() / num_points, found.pages.mean() / num_pages
    print(
        f"| {name} | {candidates:.3f} | {pages:.3f} | {index_share:.3f} | {seconds:.4f} |",
        flush=True,
    )


def timed(search, num_queries: int):
    start = time.perf_counter()
    found = search()
    return found, (time.perf_counter() - start) / num_queries


def index_bytes(index, filter: str) -> int:
    """What a filter reads besides rows, at most."""
    tuples, leaves = index.tuples.values.nbytes, index.leaves.nbytes
    if filter == "scan":
        return tuples
    if filter == "sums":
        return leaves + sum(tree.leaves().nbytes for tree in index.trees)
    return tuples + leaves + sum(tree.nodes.nbytes for tree in index.trees)


def compare_indexes(x, queries, divergence, folder, k, page_bytes) -> None:
    space = Sided(get(divergence))
    rng = np.random.default_rng(0)
    few = x[rng.choice(len(x), min(1000, len(x)), replace=False)].astype(np.float64)
    modelled = planning.model_num_parts(space, few, num_points=len(x), k=k, rng=rng)
    expected = None
    for parts in ("1", *PARTS.value):
        num_parts = modelled if parts == "paper" else int(parts)
        if num_parts is None:
            print("| the paper's model has no optimum: bounds do not fall with M |")
            continue
        path = pathlib.Path(folder) / f"{divergence}_{page_bytes}_{num_parts}_{k}_{parts}"
        index = brepartition.build_index(
            x, divergence, num_parts=num_parts, path=path, page_bytes=page_bytes
        )
        filters = [("scan", None)] if expected is None else []
        filters += [("sums", "ball")] if num_parts == 1 else [("paper", "ball")]
        filters += [("sums", "box")]
        for filter, bound in filters:
            search = lambda: brepartition.search(index, queries, k, filter=filter, bound=bound)  # noqa: B023
            found, seconds = timed(search, len(queries))
            expected = found if expected is None else expected
            share = index_bytes(index, filter) / (index.rows.num_pages * page_bytes)
            title = "BB-tree" if (num_parts, bound) == (1, "ball") else filter
            name = f"{title}, M = {num_parts}{' (model)' if parts == 'paper' else ''}"
            report(name, found, expected, seconds, len(x), index.rows.num_pages, share)
        chosen = planning.filter_pays(index, len(queries), k)
        print(f"|   auto takes {'sums' if chosen else 'scan'}, gauge {index.gauge.name} |")
    compare_va_file(x, queries, space, page_bytes, k, expected)


def compare_va_file(x, queries, space, page_bytes, k, expected) -> None:
    rows = paged(x, page_bytes)
    file = va_file.build(x, rows, space, bits=BITS.value)
    find = lambda: [va_file.search(file, q, k) for q in queries.astype(np.float64)]
    answers, seconds = timed(find, len(queries))
    found = brepartition.Neighbours(
        np.stack([near.positions for near, _ in answers]),
        np.stack([near.distances for near, _ in answers]),
        np.array([reader.num_candidates for _, reader in answers]),
        np.array([reader.num_pages for _, reader in answers]),
    )
    share = file.index_bytes / (rows.num_pages * page_bytes)
    name = f"VA-file, {file.bits} bits"
    report(name, found, expected, seconds, len(x), rows.num_pages, share)


def main(argv) -> None:
    del argv
    for name in DATA.value:
        make, divergence = SETS[name]
        rng = np.random.default_rng(0)
        rows = make(rng, NUM_POINTS.value + NUM_QUERIES.value)
        x, queries = rows[: NUM_POINTS.value], rows[NUM_POINTS.value :]
        for page_bytes in map(int, PAGE_BYTES.value):
            for k in map(int, K.value):
                print(f"\n{name}, {divergence}, {x.shape}, k = {k}, pages of {page_bytes} bytes")
                print("| method | candidates | pages | index read | seconds a query |")
                print("|---|---|---|---|---|")
                with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
                    compare_indexes(x, queries, divergence, folder, k, page_bytes)


if __name__ == "__main__":
    app.run(main)
