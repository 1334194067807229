# SPDX-License-Identifier: Apache-2.0
"""Builds a tree over points, with the ball and the box of each node.

Points are split recursively by Bregman 2-means, each of whose assignments is a half-space. They are
kept once, in their own type, and converted to float64 a megabyte at a time. Nodes of one depth are
processed together. Source: Cayton 2008, Fast nearest neighbor retrieval for Bregman
divergences.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from scorejax.bregman.divergences.cauchy import (
    ROUNDING,
    Gauge,
    gauge_of,
    norm,
    point_terms,
    point_vectors,
    query_terms,
    vector_extents,
)
from scorejax.bregman.divergences.sided import Sided
from scorejax.bregman.index.ball_tree import SLACK, Tree, node_type
from scorejax.bregman.scan.ranking import PIECE

SMALLEST_SHARE = 0.05
"""Smallest share of a node's points in a child; without it outliers could make a tree n deep."""


@np.errstate(all="ignore")
def build_tree(
    rows: Float[np.ndarray, "n d"],
    part: Int[np.ndarray, "p"],
    space: Sided,
    *,
    leaf_size: int,
    rng: np.random.Generator,
) -> tuple[Tree, Int[np.ndarray, "n"]]:
    """The tree over the columns `part`, and the numbers of the points in the order of its leaves.

    Takes about n log(n / leaf_size) p operations, and memory for 2 n p numbers of the rows' type.
    """
    x = np.take(rows, part, axis=1)
    order = np.arange(len(x))
    tree = _number(_split_all(x, order, space, leaf_size, rng), x.shape[1])
    _set_boxes(tree, x)
    _set_balls(tree, x, space)
    return tree, order


def _split_all(x, order, space, leaf_size, rng) -> list[tuple[int, int, int]]:
    """Sorts x and `order` by leaf, in place; returns every node as (start, stop, left child or -1).

    Children come after their parents, and the right child follows the left one. At every step the
    points of a node are contiguous.
    """
    spans = [(0, len(order), -1)]
    unsplit = [0]
    while unsplit:
        at = unsplit.pop()
        start, stop, _ = spans[at]
        if stop - start <= leaf_size:
            continue
        span = slice(start, stop)
        is_left = _two_means(x[span], space, rng)
        sequence = np.argsort(~is_left, kind="stable")
        order[span], x[span] = order[span][sequence], x[span][sequence]
        middle = start + int(np.count_nonzero(is_left))
        spans[at] = (start, stop, len(spans))
        unsplit += [len(spans), len(spans) + 1]
        spans += [(start, middle, -1), (middle, stop, -1)]
    return spans


def _two_means(
    x: Float[np.ndarray, "n p"], space: Sided, rng: np.random.Generator, *, num_steps: int = 4
) -> Bool[np.ndarray, "n"]:
    """Whether each point is in the first of two clusters, neither of which is very small."""
    few = x[rng.integers(len(x), size=256)] if len(x) > 512 else x
    few = space.affine(np.asarray(few, np.float64))
    widest = int(np.argmax(few.std(axis=0)))
    direction, threshold = np.zeros(x.shape[1]), np.median(few[:, widest])
    direction[widest] = 1
    for _ in range(num_steps):
        on_first = few @ direction > threshold
        num_first = np.count_nonzero(on_first)
        if num_first in (0, len(few)):
            break
        sums = on_first @ few, ~on_first @ few
        means = np.stack([sums[0] / num_first, sums[1] / (len(few) - num_first)])
        centres = space.from_affine(means)
        slopes, heights = space.slope(centres), space.copotential(centres).sum(axis=1)
        if not (np.isfinite(slopes).all() and np.isfinite(heights).all()):
            break
        direction, threshold = slopes[0] - slopes[1], heights[0] - heights[1]
    score = np.empty(len(x))
    for block in _blocks(len(x), x.shape[1]):
        score[block] = space.affine(np.asarray(x[block], np.float64)) @ direction - threshold
    is_left = score > 0
    if SMALLEST_SHARE * len(x) <= np.count_nonzero(is_left) <= (1 - SMALLEST_SHARE) * len(x):
        return is_left
    is_left = np.zeros(len(x), bool)
    is_left[np.argpartition(score, len(x) // 2)[: len(x) // 2]] = True
    return is_left


def _blocks(num: int, num_columns: int) -> Iterator[slice]:
    """Slices of `num` rows of about a megabyte in float64 each, which fit the cache."""
    step = max(1, PIECE // num_columns)
    return (slice(start, min(start + step, num)) for start in range(0, num, step))


def _number(spans: list[tuple[int, int, int]], num_columns: int) -> Tree:
    """The tree of nodes: leaves first, in the order of their points, then parents, root last."""
    is_leaf = np.array([left < 0 for _, _, left in spans])
    start = np.array([start for start, _, _ in spans])
    leaves = np.flatnonzero(is_leaf)
    # Children come after their parents in `spans`; reversed, they come first.
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
    lower, upper = nodes["lower"], nodes["upper"]
    for i, (left, right) in enumerate(_children(tree), tree.num_leaves):
        np.minimum(lower[left], lower[right], out=lower[i])
        np.maximum(upper[left], upper[right], out=upper[i])


def _set_balls(tree: Tree, x: Float[np.ndarray, "n p"], space: Sided) -> None:
    """Sets centroids, and radii by inner products about the mean, enlarged by their rounding."""
    nodes = tree.nodes
    centres = space.from_affine(_means(tree, x, space))
    nodes["centre"] = np.clip(centres, nodes["lower"], nodes["upper"])
    gauge = gauge_of(space, tree.leaves()["centre"], "mean")
    heights, sizes = np.empty(len(x)), np.zeros(2)
    for block in _blocks(*x.shape):
        rows = np.asarray(x[block], np.float64)
        terms, u = point_terms(space, gauge, rows)
        heights[block] = terms.sum(axis=1)
        largest = norm(u).max(), vector_extents(space, gauge, rows).max()
        sizes = np.maximum(sizes, largest)
    for level in _levels(tree):
        _set_radii(nodes, level, x, heights, sizes, space, gauge)


def _means(tree: Tree, x: Float[np.ndarray, "n p"], space: Sided) -> Float[np.ndarray, "nodes p"]:
    """The mean of each node's points, in the coordinates in which centroids are means."""
    nodes, leaves = tree.nodes, tree.leaves()
    sums = np.zeros((len(nodes), x.shape[1]))
    counts = nodes["stop"] - nodes["start"]
    for some in _blocks(tree.num_leaves, x.shape[1] * int(counts[: tree.num_leaves].max())):
        first, last = leaves["start"][some][0], leaves["stop"][some][-1]
        u = space.affine(np.asarray(x[first:last], np.float64))
        sums[some] = np.add.reduceat(u, leaves["start"][some] - first, axis=0)
    for i, (left, right) in enumerate(_children(tree), tree.num_leaves):
        sums[i] = sums[left] + sums[right]
    return sums / counts[:, None]


def _set_radii(nodes, level, x, heights, sizes, space, gauge) -> None:
    """Sets the radii of nodes that share no point, from the terms and products of their points."""
    some = nodes[level]
    place = Gauge(gauge.name, *(np.broadcast_to(a, some["centre"].shape) for a in gauge[1:]))
    query = query_terms(space, place, some["centre"])
    counts = some["stop"] - some["start"]
    node = np.repeat(np.arange(len(level)), counts)
    positions = np.arange(len(node)) + (some["start"] - (np.cumsum(counts) - counts))[node]
    total, term = np.full((2, len(level)), -np.inf)
    for block in _blocks(len(node), x.shape[1]):
        rows, of = positions[block], node[block]
        u = point_vectors(space, gauge, np.asarray(x[rows], np.float64))
        products = np.einsum("ij,ij->i", u, query.vector[of])
        first = np.flatnonzero(np.diff(of, prepend=-1))
        for most, values in ((total, heights[rows] + products), (term, heights[rows])):
            most[of[first]] = np.maximum(most[of[first]], np.maximum.reduceat(values, first))
    longest, reach = sizes
    size = term + np.abs(query.terms).sum(axis=(0, 2)) + reach * norm(query.vector)
    size += (longest + reach) * norm(query.extents)
    radius = total + query.terms.sum(axis=(0, 2)) + ROUNDING * size
    for i in np.flatnonzero(~np.isfinite(radius)):
        points = x[some["start"][i] : some["stop"][i]]
        radius[i] = space.distances(points, some["centre"][i]).max() * (1 + SLACK)
    nodes["radius"][level] = np.maximum(radius, 0)


def _levels(tree: Tree) -> list[Int[np.ndarray, "_"]]:
    """The nodes of each depth, in the order of their points."""
    depth = np.zeros(len(tree.nodes), np.int64)
    parents = range(tree.num_leaves, len(tree.nodes))
    for i, children in reversed([*zip(parents, _children(tree), strict=True)]):
        depth[children] = depth[i] + 1
    order = np.lexsort((tree.nodes["start"], depth))
    return np.split(order, np.flatnonzero(np.diff(depth[order])) + 1)


def _children(tree: Tree) -> list[list[int]]:
    """Both children of every parent."""
    parents = tree.nodes[tree.num_leaves :]
    return np.stack([parents["left"], parents["right"]], axis=1).tolist()
