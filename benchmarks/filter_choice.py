# SPDX-License-Identifier: Apache-2.0
"""Is "auto" ever slower than a scan?

    python -m benchmarks.filter_choice --num_points=20000

For each set of points, an index with as many parts as are measured to be best, on disk with
everything cached; for 1, 10 and 64 queries the times of "auto" and of summed bounds over that of a
scan, medians of ratios within a round. The answers are in docs/papers/brepartition.md.
"""

import functools
import pathlib
import statistics
import tempfile

import numpy as np
from absl import app, flags

from benchmarks import timing
from benchmarks.bregman_sets import SETS
from scorejax.bregman.index import brepartition, planning

DATA = flags.DEFINE_list("data", [*SETS], "Which sets.")
NUM_POINTS = flags.DEFINE_list("num_points", ["20000"], "Of each set.")
NUM_QUERIES = flags.DEFINE_list("num_queries", ["1", "10", "64"], "In one call.")
K = flags.DEFINE_integer("k", 20, "Neighbours.")
PARTS = flags.DEFINE_integer("parts", 0, "Of the columns; 0: as measured.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each.")


def compare(name: str, num_points: int, folder: pathlib.Path) -> None:
    make, divergence = SETS[name]
    x, queries = make(np.random.default_rng(0), num_points, max(map(int, NUM_QUERIES.value)))
    index = brepartition.build_index(
        x, divergence, path=folder / f"{name}_{num_points}", num_parts=PARTS.value or None
    )
    for num in map(int, NUM_QUERIES.value):
        search = functools.partial(brepartition.search, index, queries[:num], K.value)
        contenders = {f: functools.partial(search, filter=f) for f in ("scan", "auto", "sums")}
        times = timing.compare(contenders, rounds=ROUNDS.value, calls=1)
        over_scan = {
            f: statistics.median(a / b for a, b in zip(times[f], times["scan"], strict=True))
            for f in ("auto", "sums")
        }
        taken, _ = planning.preference(index, num, K.value)
        expected = planning.filter_seconds(index, planning.ELSEWHERE * index.shares.at(K.value)[0])
        foretold = expected / planning.scan_seconds(index, num)
        print(
            f"| {name}, {x.shape[0]} x {x.shape[1]}, M = {len(index.parts)} | {num} | {taken} "
            f"| {over_scan['auto']:.2f} | {over_scan['sums']:.2f} | {foretold:.2f} "
            f"| {statistics.median(times['scan']) / num * 1e3:.2f} |",
            flush=True,
        )


def main(argv) -> None:
    del argv
    print("| points | queries | auto takes | auto / scan | sums / scan | foretold | scan, ms |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for num_points in map(int, NUM_POINTS.value):
            for name in DATA.value:
                compare(name, num_points, pathlib.Path(folder))


if __name__ == "__main__":
    app.run(main)
