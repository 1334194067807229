# SPDX-License-Identifier: Apache-2.0
"""BrePartition: exact and approximate nearest neighbours under Bregman distances by an index.

The coordinates are cut into parts (`partition`). Each part has a tree over all points (`ball_tree`)
and two numbers per point for Cauchy bounds (`cauchy`). A query is answered by filter and refine
(`filters`), or by a scan of all rows (`row_scan`) if `planning` expects that to be sooner. On disk,
rows lie on pages (`store`, `pages`). Answers without `p` are exact: those of brute force in
float64.
Source: arXiv:2006.00227.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from scorejax.bregman.divergences import Divergence, get
from scorejax.bregman.divergences.cauchy import GAUGES, gauge_of, point_tuples, point_vectors
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index import approximate, filters, partition, planning, store
from scorejax.bregman.index.approximate import Calibration
from scorejax.bregman.index.ball_tree import BOUNDS, leaf_numbers
from scorejax.bregman.index.bregman_index import BregmanIndex
from scorejax.bregman.index.pages import PageReader, check_page_bytes, paged
from scorejax.bregman.index.row_scan import scan
from scorejax.bregman.index.tree_building import build_tree
from scorejax.bregman.scan.ranking import Neighbours, Within
from scorejax.choices import choose, require_known

SAMPLE_ROWS = 4096
PAGE_BYTES = 32768
FILTERS = ("auto", "paper", "seed", "sums", "scan")
CALIBRATED = ("paper", "sums")


@np.errstate(all="ignore")
def build_index(
    points: Real[ArrayLike, "n d"],
    divergence: str | Divergence,
    *,
    num_parts: int | None = None,
    leaf_size: int = 64,
    path: str | os.PathLike | None = None,
    side: str = "data_first",
    page_bytes: int = PAGE_BYTES,
    gauge: str | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> BregmanIndex:
    """An index that answers by D(point, query), or by D(query, point) with side="query_first".

    `num_parts` and `gauge` are chosen by measurements on a sample if they are None. With `path`,
    the index is written to that folder, which must not exist, and opened from it. `points` may be a
    memory map; `columns` are names of coordinates, which the index keeps. Rows are kept as float32
    if the points are, else as float64. Memory while building: the rows, n (20 M + 8) bytes, and for
    a tree at a time 40 n bytes and 2 n d / M numbers of the rows' type.
    Raises: ValueError for points outside the divergence's domain and for invalid options.
    """
    space = Sided(get(divergence), side)
    layout = {"leaf_size": leaf_size, "page_bytes": page_bytes}
    rows = checked_rows(points, space, num_parts=num_parts, **layout)
    if path is not None:
        store.require_free(path)
    rng = np.random.default_rng(seed)
    make = functools.partial(_build, space, gauge=gauge, rng=rng, **layout)
    if num_parts is None:
        few = _sample(rows, rng)
        build_few = lambda m: make(few, num_parts=m)
        num_parts = planning.measured_num_parts(build_few, num_columns=rows.shape[1])
    index = make(rows, num_parts=num_parts)
    if columns is not None:
        index = dataclasses.replace(index, columns=tuple(columns))
    if path is None:
        return index
    store.save(index, path)
    custom = None if space.divergence.name in store.DIVERGENCES else space.divergence
    return store.open_index(path, divergence=custom, verify=False)


@np.errstate(all="ignore")
def search(
    index: BregmanIndex,
    queries: Real[ArrayLike, "q d"],
    k: int,
    *,
    p: float | None = None,
    filter: str = "auto",
    bound: str | None = None,
    calibration: Calibration | None = None,
) -> Neighbours:
    """The k nearest points of each query; exact, unless `p` in (0, 1] permits an approximation.

    `filter` is "sums", "seed" or "paper" (see `filters`), "scan", or "auto", which takes "sums" if
    it expects at most a share of 0.3 of candidates and no sooner answer from a scan. `bound` is
    "box", or "ball" as in the paper. With `p`, all k are found with that probability: by the
    conformal rule if there is a `calibration`; else "paper" shrinks its radii as the paper does,
    and the other filters answer exactly.
    Raises: ValueError unless 1 <= k <= n and the queries fit the index.
    """
    q = index.coordinates(np.asarray(queries))
    check_search(index, k, p=p, filter=filter, bound=bound, calibration=calibration)
    if calibration is not None and p is not None:
        filter, bound = calibration.filter, calibration.bound
    elif filter == "auto":
        filter, _ = planning.preference(index, len(q), k)
    if filter == "scan":
        nearest = scan(index, q, k)
        read = [(index.num_points, index.rows.num_pages)] * len(q)
    else:
        bound = bound or ("ball" if filter == "paper" else "box")
        answers = [_filtered(index, row, k, p, filter, bound, calibration) for row in q]
        nearest, read = [near for near, _ in answers], [counts for _, counts in answers]
    ids = [index.ids[near.positions] for near in nearest]
    counts = np.array(read, np.int64).reshape(-1, 2)
    return Neighbours(
        np.array(ids, np.int64).reshape(-1, k),
        np.array([near.distances for near in nearest]).reshape(-1, k),
        counts[:, 0],
        counts[:, 1],
    )


@np.errstate(all="ignore")
def range_search(
    index: BregmanIndex, queries: Real[ArrayLike, "q d"], radius: float, *, bound: str = "box"
) -> Within:
    """All points whose divergence from a query is at most the radius.

    Raises: ValueError unless radius >= 0 and the queries fit the index, and for a scan in memory.
    """
    _require_index(index, "range_search")
    if not radius >= 0:
        raise ValueError(f"range_search needs radius >= 0; got {radius}.")
    choose("bound", bound, BOUNDS)
    ids, distances, counts = [], [], []
    for q in index.coordinates(np.asarray(queries)):
        lower = filters.leaf_bounds(index, q, BOUNDS[bound])
        positions, _ = filters.summed_bounds(index, lower, radius)
        reader, nearest = PageReader(index.rows), filters.Nearest(len(positions) + 1, index.ids)
        filters.refine(index, q, positions, reader, nearest)
        within = nearest.distances <= radius
        ids.append(index.ids[nearest.positions[within]])
        distances.append(nearest.distances[within])
        counts.append((reader.num_candidates, reader.num_pages))
    counts = np.array(counts, np.int64).reshape(-1, 2)
    return Within(ids, distances, counts[:, 0], counts[:, 1])


@np.errstate(all="ignore")
def calibrate(
    index: BregmanIndex,
    queries: Real[ArrayLike, "m d"],
    k: int,
    *,
    filter: str = "sums",
    bound: str | None = None,
) -> Calibration:
    """Answers queries exactly, and records how far the filter had to go for each.

    The queries should be like those to come, and not among the points. A search with `p` needs at
    least 1 / (1 - p) of them; with fewer it is exact.
    Raises: ValueError as `search`, and for a filter without a score.
    """
    _require_index(index, "calibrate")
    require_known("filter with a calibration", filter, CALIBRATED)
    check_search(index, k, filter=filter, bound=bound)
    bound = bound or ("ball" if filter == "paper" else "box")
    q = index.coordinates(np.asarray(queries))
    exact = [_filtered(index, row, k, None, "sums", "box", None)[0] for row in q]
    if filter == "sums":
        score = lambda row, near: approximate.summed_score(index, row, near, bound)
    else:
        score = functools.partial(approximate.radius_score, index)
    return Calibration(filter, bound, k, np.array([*map(score, q, exact)]), index.fingerprint)


def _require_index(index: Any, name: str) -> None:
    """Raises ValueError for what `build_index` returns without `path` or `num_parts`."""
    if not isinstance(index, BregmanIndex):
        raise ValueError(
            f"{name} needs an index of BrePartition; got {type(index).__name__}. Build it with "
            "num_parts=8, say, or path= for one on disk"
        )


def _filtered(index, q, k, p, filter, bound, calibration):
    """The nearest points by a filter, with the numbers of candidates and pages that it took."""
    reader, nearest = PageReader(index.rows), filters.Nearest(k, index.ids)
    threshold = calibration.threshold(p) if p is not None and calibration is not None else None
    if filter == "sums":
        stop = 1.0 if threshold is None else threshold
        filters.by_summed_bounds(index, q, reader, nearest, k, bound=bound, stop=stop)
    elif filter == "seed":
        filters.by_seed_radii(index, q, reader, nearest, k, bound=bound)
    else:
        shrink = threshold
        if p is not None and calibration is None:
            searching, _ = filters.searching_bound(index, filters.index_tuple(index, q), k)
            moments = approximate.product_moments(index, q)
            shrink = approximate.paper_shrinkage(searching, *moments, p)
        filters.by_paper_radii(index, q, reader, nearest, k, bound=bound, shrink=shrink)
    return nearest, (reader.num_candidates, reader.num_pages)


def _build(space, rows, *, num_parts, leaf_size, page_bytes, gauge, rng) -> BregmanIndex:
    few = _sample(rows, rng)
    parts = tuple(partition.pccp(few, num_parts, rng=rng))
    name = gauge or planning.best_gauge(space, few, parts, rng)
    require_known("gauge", name, GAUGES)
    trees, leaves = [], []
    for part in parts:
        tree, order = build_tree(rows, part, space, leaf_size=leaf_size, rng=rng)
        ids = order if not trees else ids
        trees.append(tree)
        leaves.append(leaf_numbers(tree, order)[ids])
    gauged = gauge_of(space, few, name)
    in_order = paged(rows, page_bytes, order=ids)
    u = point_vectors(space, gauged, few)
    index = BregmanIndex(
        space=space,
        parts=parts,
        gauge=gauged,
        trees=tuple(trees),
        leaves=np.stack(leaves),
        tuples=point_tuples(space, gauged, in_order.block(0, len(rows)), parts),
        rows=in_order,
        ids=ids,
        moments=np.concatenate([u.mean(axis=0)[None], np.atleast_2d(np.cov(u.T, ddof=0))]),
        page_bytes=page_bytes,
        leaf_size=leaf_size,
    )
    queries = planning.example_queries(space, few, planning.MEASURED_QUERIES, rng)
    return index.with_shares(planning.measured_shares(index, queries))


def checked_rows(
    points: ArrayLike,
    space: Sided,
    *,
    num_parts: int | None = None,
    leaf_size: int = 64,
    page_bytes: int = PAGE_BYTES,
) -> Float[np.ndarray, "n d"]:
    """Points in the coordinates of the divergence; a view of the points if these are the same.

    Raises: ValueError for points or settings from which no index can be built.
    """
    if leaf_size < 1:
        raise ValueError(f"build_index needs leaf_size >= 1; got {leaf_size}.")
    check_page_bytes(page_bytes)
    points = points if isinstance(points, np.ndarray) else np.asarray(points)
    if points.ndim != 2 or not len(points):
        raise ValueError(f"an index needs points (n, d), at least one; got {points.shape}.")
    if num_parts is not None:
        partition.check_num_parts(points.shape[1], num_parts)
    rows = space.divergence.check_points(points, side=space.side)
    if space.divergence.transform is not None:
        return np.asarray(space.divergence.coordinates(rows.astype(np.float64)))
    return rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float64)


def _sample(rows: Float[np.ndarray, "n d"], rng: np.random.Generator) -> Float[np.ndarray, "s d"]:
    few = rng.choice(len(rows), min(SAMPLE_ROWS, len(rows)), replace=False)
    return np.asarray(rows[np.sort(few)], np.float64)


def check_probability(p: float | None) -> None:
    """Raises ValueError unless p is None or in (0, 1]."""
    if p is not None and not 0 < p <= 1:
        raise ValueError(f"p needs to be in (0, 1]; got {p}.")


def check_search(
    index: BregmanIndex,
    k: int,
    *,
    p: float | None = None,
    filter: str = "auto",
    bound: str | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Raises ValueError for settings with which no search can be made."""
    if not (isinstance(k, int | np.integer) and 1 <= k <= index.num_points):
        raise ValueError(f"k needs to be a whole number in [1, {index.num_points}]; got {k}.")
    check_probability(p)
    require_known("filter", filter, FILTERS)
    if bound is not None:
        choose("bound", bound, BOUNDS)
    if calibration is None:
        return
    if calibration.k != k:
        raise ValueError(f"the calibration is for k = {calibration.k}; got k = {k}.")
    if calibration.fingerprint not in ("", index.fingerprint):
        raise ValueError("the calibration is of another index; calibrate this one")
    settings = {"filter": calibration.filter, "bound": calibration.bound}
    if filter not in ("auto", calibration.filter) or bound not in (None, calibration.bound):
        raise ValueError(
            f"the calibration is for {settings}; got filter={filter!r}, bound={bound!r}."
        )
