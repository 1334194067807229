# SPDX-License-Identifier: Apache-2.0
"""How near is the exact Bregman search to what the machine can do, and to other libraries?

    python -m benchmarks.bregman_exact [--divergence=itakura_saito] [--peers]

200,000 points in 128 dimensions, k = 10. Many queries are bound by arithmetic, so they are measured
against a bare matrix product of the same size, in the faster of its two orders; one to four are
bound by reading the points, so they are measured against the largest number of them, a part of the
points on each core. With --peers also against faiss's flat inner-product index on the same problem,
with and without the ranking in double precision that makes distances of its scores, and against
nmslib's graph for KL. Both are installed by `pip install faiss-cpu nmslib`, or left out.
"""

import argparse
import concurrent.futures
import importlib.util
import os

from benchmarks import timing  # first: it sets the number of threads before JAX starts

# isort: split
import jax
import jax.numpy as jnp
import numpy as np

from scorejax import bregman
from scorejax.bregman.scan import exact, ranking

DIM, K = 128, 10
NUM_POINTS, NUM_FOR_GRAPH = 200_000, 20_000
MANY, FEW = (64, 256, 1024), (1, 2, 4)


def rows(num: int, seed: int, divergence: str) -> np.ndarray:
    """Correlated rows about 16 centres: positive, or with logit-normal entries for `logistic`."""
    generator = np.random.default_rng(seed)
    shared = np.random.default_rng(0)
    centres, mixing = shared.normal(size=(16, DIM)), shared.normal(size=(8, DIM)) / 4
    latent = generator.normal(size=(num, 8)) @ mixing + 0.3 * generator.normal(size=(num, DIM))
    latent += centres[generator.integers(16, size=num)]
    if divergence == "logistic":
        latent = 1 / (1 + np.exp(-latent))
    elif divergence not in ("squared_euclidean", "exponential"):
        latent = np.exp(latent)
    return latent.astype(np.float32)


def products(points: jax.Array, queries: np.ndarray) -> dict:
    """The bare product in both orders."""
    plain = jax.jit(lambda left, right: left @ right.T)
    queries = jnp.asarray(queries)
    return {
        "product, points by queries": lambda: jax.block_until_ready(plain(points, queries)),
        "product, queries by points": lambda: jax.block_until_ready(plain(queries, points)),
    }


def against_the_machine(index: exact.ExactIndex, divergence: str, rounds: int) -> None:
    points, parts = jnp.asarray(index.points), np.array_split(index.points, timing.THREADS)
    threads = concurrent.futures.ThreadPoolExecutor(timing.THREADS)
    for num in (*MANY, *FEW):
        queries = rows(num, 2, divergence)
        found = bregman.search(index, queries, K)
        contenders = {"search": lambda q=queries: bregman.search(index, q, K)}
        if num in MANY:
            contenders |= products(points, queries)
        else:
            contenders["reading"] = lambda: list(threads.map(np.max, parts))
        times = timing.compare(contenders, rounds=rounds, calls=4)
        second = int((found.candidates > exact._num_candidates(K, NUM_POINTS)).sum())
        title = f"{divergence}, {num} queries; second scan for {second}"
        timing.report(title, times, {}, ["search"])


def against_faiss(index: exact.ExactIndex, divergence: str, rounds: int) -> None:
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    known = bregman.get(divergence)
    # D(x, q) = phi(x) - <x, phi'(q)> + a term that depends on q only.
    wide = index.points.astype(np.float64)
    height = known.phi(wide).sum(axis=1, keepdims=True)
    flat = faiss.IndexFlatIP(DIM + 1)
    flat.add(np.concatenate([wide, -height], axis=1).astype(np.float32))
    for num in (1, 64, 1024):
        queries = rows(num, 2, divergence)
        slopes = known.gradient(queries.astype(np.float64))
        form = np.concatenate([slopes, np.ones((num, 1))], axis=1).astype(np.float32)

        def ranked(form=form, queries=queries):
            candidates = flat.search(form, K + 6)[1]
            return ranking.rank(index, queries.astype(np.float64), candidates, K)

        ours = bregman.search(index, queries, K)
        recall = np.mean(
            [np.isin(a, b).mean() for a, b in zip(ours.ids, ranked().ids, strict=True)]
        )
        contenders = {
            "search": lambda q=queries: bregman.search(index, q, K),
            "faiss, scores": lambda f=form: flat.search(f, K),
            "faiss, ranked": ranked,
        }
        times = timing.compare(contenders, rounds=rounds, calls=2)
        notes = {"faiss, ranked": f"recall {recall:.4f}"}
        timing.report(f"{divergence}, {num} queries", times, notes, ["search"])


def against_nmslib(rounds: int) -> None:
    import nmslib

    points = rows(NUM_FOR_GRAPH, 1, "generalized_kl")
    queries = rows(64, 2, "generalized_kl")
    points /= points.sum(axis=1, keepdims=True)
    queries /= queries.sum(axis=1, keepdims=True)
    threads = len(os.sched_getaffinity(0))
    graph = nmslib.init(method="hnsw", space="kldivgenfast")
    graph.addDataPointBatch(points)
    build = timing.seconds(lambda: graph.createIndex({"indexThreadQty": threads, "M": 16}))
    index = bregman.build_index(points, "simplex_kl")
    ours = bregman.search(index, queries, K)
    contenders, notes = {"search": lambda: bregman.search(index, queries, K)}, {}
    for ef in (20, 50, 100, 200, 400):
        name = f"nmslib, ef {ef}"

        def approximate(ef=ef):
            graph.setQueryTimeParams({"efSearch": ef})
            return graph.knnQueryBatch(queries, k=K, num_threads=threads)

        shares = [np.isin(a, b[0]).mean() for a, b in zip(ours.ids, approximate(), strict=True)]
        contenders[name], notes[name] = approximate, f"recall {np.mean(shares):.4f}"
    times = timing.compare(contenders, rounds=rounds, calls=2)
    title = f"simplex_kl, {NUM_FOR_GRAPH} points, 64 queries; nmslib builds for {build:.1f} s"
    timing.report(title, times, notes, ["search"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--divergence", default="itakura_saito")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    points = rows(NUM_POINTS, 1, arguments.divergence)
    index = bregman.build_index(points, arguments.divergence)
    print(f"{len(os.sched_getaffinity(0))} cores, {jax.devices()[0].device_kind}")
    against_the_machine(index, arguments.divergence, arguments.rounds)
    if arguments.peers and importlib.util.find_spec("faiss"):
        against_faiss(index, arguments.divergence, arguments.rounds)
    if arguments.peers and importlib.util.find_spec("nmslib"):
        against_nmslib(arguments.rounds)


if __name__ == "__main__":
    main()
