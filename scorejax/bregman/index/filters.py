# SPDX-License-Identifier: Apache-2.0
"""Filter and refine: three filters that find few candidates among which the nearest points are.

"paper" (arXiv:2006.00227) excludes a point that is, in every part, farther than the upper bound
there of the point with the k-th smallest summed upper bound. "seed" does the same with any radii
that sum to at least tau, the k-th smallest divergence of some points at hand; tau is so much
smaller than an upper bound that this pays. "sums" excludes a point if the lower bounds of its
leaves, summed over parts, exceed tau. Where every bound exceeds its radius the sum exceeds tau, so
that for equal tau and trees "sums" leaves no more candidates than "seed". Leaves are bounded by box
or ball (`ball_tree`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.bregman.divergences.cauchy import QueryTuple, bounds, query_tuple
from scorejax.bregman.index.ball_tree import BOUNDS, SLACK, NodeBounds, leaves_within
from scorejax.bregman.index.bregman_index import BregmanIndex
from scorejax.bregman.index.pages import PageReader
from scorejax.bregman.scan.ranking import PIECE

BLOCK = 8192
Query = Float[np.ndarray, "d"]
Positions = Int[np.ndarray, "m"]


class Nearest:
    """The k nearest of the points seen so far; equal distances are ordered by id."""

    def __init__(self, k: int, ids: Int[np.ndarray, "n"]):
        self._k, self._ids = k, ids
        self.positions, self.distances = np.empty(0, np.int64), np.empty(0)

    def add(self, positions: Positions, distances: Float[np.ndarray, "m"]) -> None:
        near = distances <= self.bound
        positions = np.concatenate([self.positions, positions[near]])
        distances = np.concatenate([self.distances, distances[near]])
        best = np.lexsort((self._ids[positions], distances))[: self._k]
        self.positions, self.distances = positions[best], distances[best]

    @property
    def bound(self) -> float:
        """The k-th smallest distance, infinite as long as there are fewer."""
        return self.distances[-1] if len(self.distances) == self._k else np.inf


class SearchingBound(NamedTuple):
    """The upper bound of one point, part by part: middle + reach + rounding."""

    middle: Float[np.ndarray, "parts"]
    reach: Float[np.ndarray, "parts"]
    rounding: Float[np.ndarray, "parts"]

    def radii(self, shrink: float = 1.0) -> Float[np.ndarray, "parts"]:
        """middle + shrink * reach; at shrink = 1 no nearest neighbour is farther in every part."""
        radii = self.middle + shrink * self.reach + self.rounding
        return np.where(np.isnan(radii), np.inf, radii)


def refine(
    index: BregmanIndex, q: Query, positions: Positions, reader: PageReader, nearest: Nearest
) -> None:
    """Computes the divergences of candidates and adds them to `nearest`."""
    step = max(1, PIECE // index.num_columns)
    for start in range(0, len(positions), step):
        block = positions[start : start + step]
        nearest.add(block, index.space.distances(reader.take(block), q))


def leaf_bounds(
    index: BregmanIndex, q: Query, node_bounds: NodeBounds
) -> list[Float[np.ndarray, "_"]]:
    """Lower bounds of the divergence in each part over every leaf of its tree."""
    return [
        node_bounds(index.space, tree.leaves(), q[part])
        for tree, part in zip(index.trees, index.parts, strict=True)
    ]


def seed_positions(
    index: BregmanIndex, q: Query, first: Float[np.ndarray, "leaves"], k: int
) -> Positions:
    """At least k points: those in the leaves of the first tree with the smallest bounds.

    Leaves of equal bound, such as zero, are ordered by the distance of their centres.
    """
    leaves = index.trees[0].leaves()
    counts = leaves["stop"] - leaves["start"]
    from_centre = index.space.distances(leaves["centre"], q[index.parts[0]])
    order = np.lexsort((from_centre, first))
    chosen = order[: 1 + np.searchsorted(np.cumsum(counts[order]), k)]
    return np.flatnonzero(np.repeat(np.isin(np.arange(len(counts)), chosen), counts))


def summed_bounds(
    index: BregmanIndex, bounds: list[Float[np.ndarray, "_"]], threshold: float
) -> tuple[Positions, Float[np.ndarray, "m"]]:
    """The points whose leaves' bounds sum to at most the threshold, and these sums.

    A point is dropped as soon as its partial sum exceeds it; for the first tree, a leaf at a time.
    """
    leaves = index.trees[0].leaves()
    is_near = bounds[0] <= threshold
    counts = (leaves["stop"] - leaves["start"])[is_near]
    shifts = leaves["start"][is_near] - (np.cumsum(counts) - counts)
    positions = np.arange(counts.sum()) + np.repeat(shifts, counts)
    lower = np.repeat(bounds[0][is_near], counts)
    rest = sorted(range(1, len(bounds)), key=lambda i: -float(bounds[i].mean()))
    for i in rest:
        lower = lower + bounds[i][index.leaves[i][positions]]
        near = lower <= threshold
        positions, lower = positions[near], lower[near]
    return positions, lower


def by_summed_bounds(
    index: BregmanIndex,
    q: Query,
    reader: PageReader,
    nearest: Nearest,
    k: int,
    *,
    bound: str,
    stop: float = 1.0,
) -> None:
    """Visits points in the order of their summed bounds, until these exceed the k-th distance.

    With stop < 1 it ends at that share of the k-th distance, and the answer is approximate.
    """
    bounds = leaf_bounds(index, q, BOUNDS[bound])
    seeds = seed_positions(index, q, bounds[0], k)
    refine(index, q, seeds, reader, nearest)
    positions, lower = summed_bounds(index, bounds, stop * nearest.bound)
    is_seed = np.zeros(index.num_points, bool)
    is_seed[seeds] = True
    order = np.argsort(lower, kind="stable")
    order = order[~is_seed[positions[order]]]
    positions, lower = positions[order], lower[order]
    start = 0
    while start < len(positions) and lower[start] <= stop * nearest.bound:
        # Batches grow, so that there are few of them and little is read in vain.
        end = start + max(k, 32, start // 4)
        near = lower[start:end] <= stop * nearest.bound
        refine(index, q, positions[start:end][near], reader, nearest)
        start = end


def by_seed_radii(
    index: BregmanIndex, q: Query, reader: PageReader, nearest: Nearest, k: int, *, bound: str
) -> None:
    """Refines the union over parts of the points within radii that share the k-th distance."""
    # With zero bounds, the leaves of the nearest centres; real ones are found from the root down.
    seeds = seed_positions(index, q, np.zeros(index.trees[0].num_leaves), k)
    refine(index, q, seeds, reader, nearest)
    radii = shared_radii(index, q, nearest)
    is_candidate = union(index, q, radii, BOUNDS[bound])
    is_candidate[seeds] = False
    refine(index, q, np.flatnonzero(is_candidate), reader, nearest)


def shared_radii(index: BregmanIndex, q: Query, nearest: Nearest) -> Float[np.ndarray, "parts"]:
    """Radii that sum to at least the k-th distance, proportional to the medians of the nearest."""
    rows = index.rows.take(nearest.positions)
    medians = [np.median(index.space.distances(rows[:, part], q[part])) for part in index.parts]
    return allot(nearest.bound, np.array(medians))


def allot(total: float, weights: Float[np.ndarray, "parts"]) -> Float[np.ndarray, "parts"]:
    """Numbers proportional to the weights that sum to `total`, or to a billionth more."""
    if not (np.isfinite(weights).all() and weights.sum() > 0):
        weights = np.ones_like(weights)
    return total * (weights / weights.sum()) * (1 + SLACK)


def by_paper_radii(
    index: BregmanIndex,
    q: Query,
    reader: PageReader,
    nearest: Nearest,
    k: int,
    *,
    bound: str,
    shrink: float | None = None,
) -> None:
    """Refines the union over parts of the points within the searching bounds.

    With `shrink`, the radii are smaller and the answer is approximate.
    """
    searching, closest = searching_bound(index, index_tuple(index, q), k)
    radii = searching.radii() if shrink is None else searching.radii(shrink)
    is_candidate = union(index, q, radii, BOUNDS[bound])
    if is_candidate.sum() < k:
        is_candidate[closest] = True
    refine(index, q, np.flatnonzero(is_candidate), reader, nearest)


def index_tuple(index: BregmanIndex, q: Query) -> QueryTuple:
    """The query's tuple for the bounds of this index."""
    return query_tuple(index.space, index.gauge, q, index.parts, index.tuples)


def searching_bound(
    index: BregmanIndex, query: QueryTuple, k: int
) -> tuple[SearchingBound, Positions]:
    """The bound of the point with the k-th smallest upper bound, and the k points up to it."""
    points = index.tuples.values
    totals = np.empty(len(points))
    for start in range(0, len(points), BLOCK):
        block = bounds(points[start : start + BLOCK], query)
        totals[start : start + BLOCK] = block.upper.sum(axis=1)
    closest = np.argpartition(totals, k - 1)[:k]
    kth = closest[np.argmax(totals[closest])]
    middle, reach = points[kth, :, 0] + query.terms, points[kth, :, 1] * query.norms
    # The same numbers as the upper bound, so that at shrink = 1 radii sum to no less than it.
    rounding = np.maximum(bounds(points[kth], query).upper - (middle + reach), 0)
    return SearchingBound(middle, reach, 2 * rounding), closest


def union(
    index: BregmanIndex, q: Query, radii: Float[np.ndarray, "parts"], node_bounds: NodeBounds
) -> Bool[np.ndarray, "n"]:
    """Whether a point lies, in some part, in a leaf that may come within the radius."""
    is_candidate = np.zeros(index.num_points, bool)
    for i, (tree, part) in enumerate(zip(index.trees, index.parts, strict=True)):
        near = leaves_within(tree, index.space, q[part], radii[i], node_bounds)
        if near.any():
            is_candidate |= near[index.leaves[i]]
    return is_candidate
