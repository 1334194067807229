# SPDX-License-Identifier: Apache-2.0
"""How often are answers with a probability complete, how far off are they, and what do they save?

    python -m benchmarks.bregman_approximate --num_points=5000

For each p: the share of 500 queries of which all k neighbours are found (coverage), the overall
ratio (mean over queries of the sum of distances found over that of the true ones), candidates as a
share of the points, and the time over that of the same filter's exact answer. Conformal radii are
learnt from 500 other queries. The answers are in docs/papers/brepartition.md.
"""

import functools
import time

import numpy as np
from absl import app, flags

from benchmarks.bregman_sets import SETS
from scorejax.bregman.index import brepartition

DATA = flags.DEFINE_list("data", ["patches", "spectra"], "Which sets.")
NUM_POINTS = flags.DEFINE_integer("num_points", 5000, "Of each set.")
NUM_QUERIES = flags.DEFINE_integer("num_queries", 500, "To answer, and as many to calibrate with.")
K = flags.DEFINE_integer("k", 20, "Neighbours.")
PARTS = flags.DEFINE_integer("parts", 8, "Of the columns.")
PROBABILITIES = flags.DEFINE_list("p", ["0.7", "0.8", "0.9"], "Of complete answers.")


def timed(search):
    start = time.perf_counter()
    return search(), time.perf_counter() - start


def compare(name: str) -> None:
    make, divergence = SETS[name]
    num = NUM_QUERIES.value
    x, queries = make(np.random.default_rng(0), NUM_POINTS.value, 2 * num)
    index = brepartition.build_index(x, divergence, num_parts=PARTS.value)
    search = functools.partial(brepartition.search, index, queries[num:], K.value, bound="box")
    learn = functools.partial(brepartition.calibrate, index, queries[:num], K.value, bound="box")
    for filter in ("sums", "paper"):
        exact, seconds = timed(functools.partial(search, filter=filter))
        share = exact.candidates.mean() / len(x)
        print(f"| {name}, {filter} | exact | 1 | 1 | {share:.3f} | 1 |", flush=True)
        ways = {"conformal": learn(filter=filter)}
        if filter == "paper":
            ways = {"paper's": None, **ways}
        for way, calibration in ways.items():
            for p in map(float, PROBABILITIES.value):
                options = {"filter": filter, "p": p, "calibration": calibration}
                found, own = timed(functools.partial(search, **options))
                complete = np.all(found.distances <= exact.distances * (1 + 1e-12), axis=1).mean()
                totals = found.distances.sum(axis=1), exact.distances.sum(axis=1)
                # Of queries whose neighbours are all copies of it there is no ratio.
                apart = totals[1] > 0
                ratio = totals[0][apart] / totals[1][apart]
                print(
                    f"| {name}, {filter} | {way}, p = {p} | {complete:.3f} | {ratio.mean():.5f} "
                    f"| {found.candidates.mean() / len(x):.3f} | {own / seconds:.2f} |",
                    flush=True,
                )


def main(argv) -> None:
    del argv
    print("| points, filter | answer | coverage | overall ratio | candidates | time / exact |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in DATA.value:
        compare(name)


if __name__ == "__main__":
    app.run(main)
