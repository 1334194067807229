# SPDX-License-Identifier: Apache-2.0
"""Trees over points whose nodes bound the divergence of all points in them from below.

A tree is made by recursive Bregman 2-means, of which each assignment is a half-space. Every node
has a Bregman ball and a box. The bound of the ball is a one-dimensional dual problem: bisection may
stop anywhere, since the dual is a valid bound at every step. The bound of the box has a closed
form, for a divergence of each coordinate grows away from the query. Source: Cayton 2008, Fast
nearest neighbor retrieval for Bregman divergences.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.bregman.cauchy import (
    ROUNDING,
    make_gauge,
    norm,
    point_terms,
    query_terms,
    vector_extents,
)
from scorejax.bregman.sided import Sided

SLACK = 1e-9
"""Share by which a bound is lowered, so that rounding never makes it exceed a divergence."""
SMALLEST_SHARE = 0.05
"""Of a node's points that either child gets; without it outliers could make a tree as deep as n."""
BISECTIONS = 24


class Tree(NamedTuple):
    """Nodes as records; the leaves come first, in the order of their points, and the root last."""

    nodes: np.ndarray
    """centre, lower, upper: (p,) each; radius; start and stop: the points, in the order of leaves;
    left, right: the children, -1 in a leaf."""
    num_leaves: int

    def leaves(self) -> np.ndarray:
        return self.nodes[: self.num_leaves]


def node_type(num_columns: int) -> np.dtype:
    """The record of a node over so many coordinates."""
    vectors = [(name, "<f8", (num_columns,)) for name in ("centre", "lower", "upper")]
    return np.dtype(
        [*vectors, ("radius", "<f8")]
        + [(name, "<i8") for name in ("start", "stop", "left", "right")]
    )


@np.errstate(all="ignore")
def build_tree(
    x: Float[np.ndarray, "n p"], space: Sided, *, leaf_size: int, rng: np.random.Generator
) -> tuple[Tree, Int[np.ndarray, "n"]]:
    """The tree over points, and the points in the order of its leaves.

    Takes about n log(n / leaf_size) p operations, and memory for 4 n p numbers.
    """
    u = space.affine(x)
    order = np.arange(len(x))
    spans = _split_all(u, order, space, leaf_size, rng)
    tree = _number(spans, x.shape[1])
    _set_boxes(tree, x[order])
    _set_balls(tree, x[order], space)
    return tree, order


def leaf_numbers(tree: Tree, order: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The leaf in which each point is, as small integers."""
    leaves = tree.leaves()
    kind = np.uint16 if tree.num_leaves <= 1 << 16 else np.uint32
    numbers = np.empty(len(order), kind)
    counts = leaves["stop"] - leaves["start"]
    numbers[order] = np.repeat(np.arange(tree.num_leaves, dtype=kind), counts)
    return numbers


@np.errstate(all="ignore")
def ball_bounds(
    space: Sided, nodes: np.ndarray, q: Float[np.ndarray, "p"], *, radius: float | None = None
) -> Float[np.ndarray, "m"]:
    """Lower bounds of the divergence from q over the Bregman ball of each node.

    With t in [0, 1) and slope(x_t) = t slope(c) + (1 - t) slope(q), the dual function
    D(x_t, q) + t / (1 - t) (D(x_t, c) - R) is a bound for every t; bisection looks for the t with
    D(x_t, c) = R, where it is largest. With `radius`, a node is left as soon as its bound exceeds
    it, or a point of the ball is seen to be within it.
    """
    centre, ball = nodes["centre"], nodes["radius"]
    best = np.zeros(len(nodes))
    inside = space.distances(np.broadcast_to(q, centre.shape), centre) <= ball
    active = np.flatnonzero(~inside)
    low, high = np.zeros(len(nodes)), np.ones(len(nodes))
    slope_c, slope_q = space.slope(centre), space.slope(q)
    for _ in range(BISECTIONS):
        if not len(active):
            break
        t = (low[active] + high[active]) / 2
        # A slope may be infinite at the end of the domain; both weights are above zero.
        x = space.from_slope(t[:, None] * slope_c[active] + (1 - t)[:, None] * slope_q)
        to_query, to_centre = space.distances(x, q), space.distances(x, centre[active])
        weight = t / (1 - t)
        rounding = ROUNDING * (to_query + weight * (to_centre + ball[active]))
        dual = to_query + weight * (to_centre - ball[active]) - rounding
        best[active] = np.fmax(best[active], np.where(np.isfinite(dual), dual, 0))
        is_in_ball = to_centre <= ball[active]
        high[active[is_in_ball]], low[active[~is_in_ball]] = t[is_in_ball], t[~is_in_ball]
        if radius is not None:
            undecided = (best[active] <= radius) & ~(is_in_ball & (to_query <= radius))
            active = active[undecided]
    return best * (1 - SLACK)


@np.errstate(all="ignore")
def box_bounds(
    space: Sided, nodes: np.ndarray, q: Float[np.ndarray, "p"], *, radius: float | None = None
) -> Float[np.ndarray, "m"]:
    """Smallest divergences from q over the box of each node; exact but for rounding.

    `radius` is there for the signature that bounds share.
    """
    del radius
    found = space.distances(np.clip(q, nodes["lower"], nodes["upper"]), q)
    return np.where(np.isfinite(found), found, 0) * (1 - SLACK)


NodeBounds = Callable[..., Float[np.ndarray, "m"]]
BOUNDS: dict[str, NodeBounds] = {"ball": ball_bounds, "box": box_bounds}


def leaves_within(
    tree: Tree, space: Sided, q: Float[np.ndarray, "p"], radius: float, node_bounds: NodeBounds
) -> Bool[np.ndarray, "leaves"]:
    """The leaves that may hold points within a radius of q: range search, level by level."""
    found = np.zeros(tree.num_leaves, bool)
    frontier = np.array([len(tree.nodes) - 1])
    while len(frontier):
        lower = node_bounds(space, tree.nodes[frontier], q, radius=radius)
        near = frontier[lower <= radius]
        found[near[near < tree.num_leaves]] = True
        parents = tree.nodes[near[near >= tree.num_leaves]]
        frontier = np.concatenate([parents["left"], parents["right"]])
    return found


def _split_all(u, order, space, leaf_size, rng) -> list[tuple[int, int, int]]:
    """Sorts `order` into leaves; every node as (start, stop, its left child or -1), children later.

    The right child is the node after the left one.
    """
    spans = [(0, len(order), -1)]
    unsplit = [0]
    while unsplit:
        at = unsplit.pop()
        start, stop, _ = spans[at]
        if stop - start <= leaf_size:
            continue
        own = order[start:stop]
        is_left = _two_means(u[own], space, rng)
        middle = start + int(is_left.sum())
        order[start:stop] = np.concatenate([own[is_left], own[~is_left]])
        spans[at] = (start, stop, len(spans))
        unsplit += [len(spans), len(spans) + 1]
        spans += [(start, middle, -1), (middle, stop, -1)]
    return spans


def _two_means(
    u: Float[np.ndarray, "n p"], space: Sided, rng: np.random.Generator, *, num_steps: int = 4
) -> Bool[np.ndarray, "n"]:
    """Which points are in the first of two clusters, neither of which is very small."""
    few = u[rng.integers(len(u), size=256)] if len(u) > 512 else u
    widest = int(np.argmax(few.std(axis=0)))
    score, on_first = u[:, widest], few[:, widest] > np.median(few[:, widest])
    for _ in range(num_steps):
        if on_first.all() or not on_first.any():
            break
        centres = space.from_affine(np.stack([few[on_first].mean(0), few[~on_first].mean(0)]))
        slopes, heights = space.slope(centres), space.copotential(centres).sum(axis=1)
        direction, threshold = slopes[0] - slopes[1], heights[0] - heights[1]
        if not (np.isfinite(direction).all() and np.isfinite(threshold)):
            break
        score, on_first = u @ direction - threshold, few @ direction > threshold
    is_left = score > 0
    if SMALLEST_SHARE * len(u) <= is_left.sum() <= (1 - SMALLEST_SHARE) * len(u):
        return is_left
    is_left = np.zeros(len(u), bool)
    is_left[np.argpartition(score, len(u) // 2)[: len(u) // 2]] = True
    return is_left


def _number(spans: list[tuple[int, int, int]], num_columns: int) -> Tree:
    """The nodes with leaves first, in the order of their points, then parents, the root last."""
    is_leaf = np.array([left < 0 for _, _, left in spans])
    start = np.array([start for start, _, _ in spans])
    leaves = np.flatnonzero(is_leaf)
    # Children come after their parents in spans, so that backwards they come first.
    sequence = np.concatenate([leaves[np.argsort(start[leaves])], np.flatnonzero(~is_leaf)[::-1]])
    number = np.empty(len(spans), np.int64)
    number[sequence] = np.arange(len(spans))
    nodes = np.zeros(len(spans), node_type(num_columns))
    for at, (first, last, left) in enumerate(spans):
        node = nodes[number[at]]
        node["start"], node["stop"] = first, last
        node["left"] = -1 if left < 0 else number[left]
        node["right"] = -1 if left < 0 else number[left + 1]
    return Tree(nodes, len(leaves))


def _set_boxes(tree: Tree, x: Float[np.ndarray, "n p"]) -> None:
    nodes, leaves = tree.nodes, tree.leaves()
    leaves["lower"] = np.minimum.reduceat(x, leaves["start"], axis=0)
    leaves["upper"] = np.maximum.reduceat(x, leaves["start"], axis=0)
    for node in nodes[tree.num_leaves :]:
        children = nodes[[node["left"], node["right"]]]
        node["lower"], node["upper"] = children["lower"].min(axis=0), children["upper"].max(axis=0)


def _set_balls(tree: Tree, x: Float[np.ndarray, "n p"], space: Sided) -> None:
    """Centroids, and radii by products about the mean, whose rounding is added to them."""
    gauge = make_gauge(space, x, "mean")
    terms, u = point_terms(space, gauge, x)
    own, affine = terms.sum(axis=1), space.affine(x)
    reach = vector_extents(space, gauge, x).max()
    longest = norm(u).max()
    for node in tree.nodes:
        block = slice(node["start"], node["stop"])
        centre = space.from_affine(affine[block].mean(axis=0))
        query = query_terms(space, gauge, centre)
        products = u[block] @ query.vector
        size = own[block].max() + np.abs(query.terms).sum() + reach * norm(query.vector)
        size += (longest + reach) * norm(query.extents)
        radius = (own[block] + products).max() + query.terms.sum() + ROUNDING * size
        if not np.isfinite(radius):
            radius = space.distances(x[block], centre).max() * (1 + SLACK)
        node["centre"], node["radius"] = centre, max(radius, 0.0)
