# SPDX-License-Identifier: Apache-2.0
"""Choices by measurement: the gauge, the number of parts, and a filter or a scan.

`model_num_parts` is the paper's model of the optimal number of parts. Its premise, that tighter
bounds leave fewer candidates, fails for the paper's own filter on most data
(docs/papers/brepartition.md). The default is therefore measured, by `measured_num_parts`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from scorejax.bregman.divergences.cauchy import (
    GAUGES,
    bounds,
    gauge_of,
    point_tuples,
    query_tuple,
)
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import partition
from scorejax.bregman.index.bregman_index import BregmanIndex, Shares
from scorejax.bregman.index.filters import Nearest, PageReader, by_summed_bounds
from scorejax.bregman.index.row_scan import QUERIES

LARGEST_SHARE = 0.3
"""Largest share of candidates, or of pages on disk, for which a filter pays."""
ELSEWHERE = 2.2
"""Ratio of candidates for unseen queries to candidates for indexed points, on patches and spectra
of photographs (benchmarks/brepartition_disk.py)."""
MOST_PARTS = 32
MODEL_QUERIES, MEASURED_QUERIES = 50, 8

# Seconds on one core of a server, 2026-11, with everything cached; a slower disk favours the
# filter. For a filter: overhead of a query and of a part, the divergence of one coordinate (or its
# square, for divergences that are sums of squares), and looking up a leaf.
SECONDS_A_QUERY, SECONDS_A_PART = 3e-4, 1e-4
SECONDS_A_COORDINATE, SECONDS_A_SQUARE, SECONDS_A_LOOKUP = 2e-8, 6e-9, 3e-9
# For the scan: a number converted to float64 and centred, once for all queries; a product and a
# row, for each query. Fitted to calls with 1, 10 and 64 queries (benchmarks/filter_choice.py).
SECONDS_A_NUMBER, SECONDS_A_PRODUCT, SECONDS_A_ROW = 2e-9, 1.6e-10, 2e-8


def example_queries(
    space: Sided, x: Float[np.ndarray, "n d"], num: int, rng: np.random.Generator
) -> Float[np.ndarray, "q d"]:
    """Points as queries; a coordinate outside the queries' domain is replaced by one inside."""
    chosen = x[rng.choice(len(x), min(num, len(x)), replace=False)]
    domain = space.divergence.queries if space.data_first else space.divergence.points
    return np.where(domain.contains(chosen), chosen, gauge_of(space, x, "corner").anchor)


@np.errstate(all="ignore")
def best_gauge(
    space: Sided,
    x: Float[np.ndarray, "n d"],
    parts: Sequence[partition.Part],
    rng: np.random.Generator,
) -> str:
    """The gauge with the smallest median k-th upper bound, k = 1 % of the sample."""
    queries = example_queries(space, x, MEASURED_QUERIES, rng)
    k = max(1, len(x) // 100)

    def median_bound(name: str) -> float:
        gauge = gauge_of(space, x, name)
        totals = np.partition(_upper_bounds(space, x, queries, parts, gauge), k - 1, axis=1)
        median = np.median(totals[:, k - 1])
        return median if np.isfinite(median) else np.inf

    return min(GAUGES, key=median_bound)


@np.errstate(all="ignore")
def model_num_parts(
    space: Sided,
    x: Float[np.ndarray, "n d"],
    *,
    num_points: int,
    k: int,
    rng: np.random.Generator,
    gauge: str = "none",
) -> int | None:
    """The paper's optimal number of parts for num_points points like x; None where it has none.

    A and alpha come from mean bounds of the sample at two numbers of parts, beta from the share of
    points within the searching bound in some part.
    """
    num_columns = x.shape[1]
    if num_columns == 1:
        return 1
    queries = example_queries(space, x, MODEL_QUERIES, rng)
    gauged = gauge_of(space, x, gauge)
    tried = sorted({max(1, num_columns // 8), max(2, num_columns // 2)})
    measure = lambda m: _bound_and_share(space, x, queries, gauged, m, k, rng)
    measured = [measure(m) for m in tried]
    means = [mean for mean, _ in measured]
    if not (np.isfinite(means).all() and min(means) > 0):
        return None
    fit = partition.fit_bound(tried, means)
    share_per_bound = measured[0][1] / means[0]
    return partition.optimal_num_parts(
        fit, share_per_bound, num_points=num_points, num_columns=num_columns, k=k
    )


def measured_num_parts(
    build: Callable[[int], BregmanIndex], *, num_columns: int, k: int = 10
) -> int:
    """The number among 1, 2, 4, ... parts of least cost for the filter of summed bounds.

    `build(num_parts)` makes the index of a sample, with measured shares.
    """
    tried = [2**i for i in range(6) if 2**i <= min(num_columns, MOST_PARTS)]

    def cost(num_parts: int) -> float:
        index = build(num_parts)
        return filter_seconds(index, index.shares.at(min(k, index.num_points))[0])

    return min(tried, key=cost)


def measured_shares(index: BregmanIndex, queries: Float[np.ndarray, "q d"]) -> Shares:
    """The shares of candidates and pages that summed bounds leave, for k = 1, 10 and 100.

    From the first k at which they are too large for a filter, shares of larger k are set to 1.
    """
    sizes = sorted({min(k, index.num_points) for k in (1, 10, 100)})
    shares = np.ones((len(sizes), 2))
    for i, k in enumerate(sizes):
        shares[i] = _mean_shares(index, queries, k)
        if shares[i, 0] > LARGEST_SHARE:
            break
    return Shares(np.array(sizes), shares[:, 0], shares[:, 1])


def preference(index: BregmanIndex, num_queries: int, k: int) -> tuple[str, str]:
    """The filter that is expected to answer sooner, "sums" or "scan" of all rows, and why."""
    candidates, pages = index.shares.at(k)
    shares = {"points as candidates": candidates}
    if index.path is not None:
        shares["pages to be read"] = pages
    for what, share in shares.items():
        if share > LARGEST_SHARE:
            leaves = f"summed bounds would leave {share:.0%} of the {what}"
            return "scan", f"{leaves}, above {LARGEST_SHARE:.0%}"
    by_sums = filter_seconds(index, min(1.0, ELSEWHERE * candidates))
    by_scan = scan_seconds(index, num_queries)
    expected = f"{1e3 * by_sums:.2g} ms a query expected by summed bounds, {1e3 * by_scan:.2g} ms "
    return "sums" if by_sums < by_scan else "scan", f"{expected}by a scan of all rows"


def filter_seconds(index: BregmanIndex, candidate_share: float) -> float:
    """Expected seconds per query with summed bounds."""
    computed = sum(
        len(part) * tree.num_leaves for part, tree in zip(index.parts, index.trees, strict=True)
    )
    computed += candidate_share * index.num_points * index.num_columns
    lookups = index.num_points * (len(index.parts) - 1)
    overhead = SECONDS_A_QUERY + SECONDS_A_PART * len(index.parts)
    is_square = index.space.divergence.name in ("squared_euclidean", "mahalanobis")
    coordinate = SECONDS_A_SQUARE if is_square else SECONDS_A_COORDINATE
    return overhead + coordinate * computed + SECONDS_A_LOOKUP * lookups


def scan_seconds(index: BregmanIndex, num_queries: int) -> float:
    """Expected seconds per query with a scan, whose reading is shared among queries."""
    # The order query_first takes the gradient of every coordinate as well.
    reading = SECONDS_A_NUMBER if index.space.data_first else 3 * SECONDS_A_NUMBER
    number = SECONDS_A_PRODUCT + reading / max(1, min(num_queries, QUERIES))
    return index.num_points * (SECONDS_A_ROW + index.num_columns * number)


def _mean_shares(index: BregmanIndex, queries: Float[np.ndarray, "q d"], k: int) -> tuple:
    counts = np.empty((len(queries), 2))
    for count, q in zip(counts, queries, strict=True):
        reader = PageReader(index.rows)
        by_summed_bounds(index, q, reader, Nearest(k, index.ids), k, bound="box")
        count[:] = reader.num_candidates, reader.num_pages
    candidates, pages = counts.mean(axis=0)
    return candidates / index.num_points, pages / index.rows.num_pages


def _upper_bounds(space, x, queries, parts, gauge) -> Float[np.ndarray, "q n"]:
    tuples = point_tuples(space, gauge, x, parts)
    of_query = functools.partial(query_tuple, space, gauge, parts=parts, points=tuples)
    return np.stack([bounds(tuples.values, of_query(q)).upper.sum(axis=1) for q in queries])


def _bound_and_share(space, x, queries, gauge, num_parts, k, rng) -> tuple[float, float]:
    """The mean upper bound, and the mean share within the searching bound in some part."""
    parts = partition.pccp(x, num_parts, rng=rng)
    tuples = point_tuples(space, gauge, x, parts)
    means, shares = [], []
    for q in queries:
        upper = bounds(tuples.values, query_tuple(space, gauge, q, parts, tuples)).upper
        totals = upper.sum(axis=1)
        radii = upper[np.argpartition(totals, min(k, len(x)) - 1)[min(k, len(x)) - 1]]
        within = [space.distances(x[:, p], q[p]) <= r for p, r in zip(parts, radii, strict=True)]
        means.append(totals.mean())
        shares.append(np.any(within, axis=0).mean())
    return float(np.mean(means)), float(np.mean(shares))
