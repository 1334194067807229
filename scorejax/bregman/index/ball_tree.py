# SPDX-License-Identifier: Apache-2.0
"""Trees over points, whose nodes give lower bounds of the divergence of all points in them.

Every node has a Bregman ball and a box (`tree_building`). The bound of the ball is a
one-dimensional dual problem; bisection may stop at any step, since each dual value is a valid
bound. The bound of the box has a closed form, since the divergence of each coordinate grows away
from the query. Source: Cayton 2008, Fast nearest neighbor retrieval for Bregman divergences.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from scorejax.bregman.divergences.cauchy import ROUNDING
from scorejax.bregman.divergences.sided import Sided

SLACK = 1e-9
"""Relative amount by which bounds are lowered, so that none exceeds a divergence by rounding."""
BISECTIONS = 24


class Tree(NamedTuple):
    """Nodes as records: first the leaves, in the order of their points; the root last."""

    nodes: np.ndarray
    """Fields: centre, lower and upper (p,); radius; start and stop, positions of the points in the
    order of leaves; left and right, the children, -1 in a leaf."""
    num_leaves: int

    def leaves(self) -> np.ndarray:
        return self.nodes[: self.num_leaves]


def node_type(num_columns: int) -> np.dtype:
    """The record type of a node over `num_columns` coordinates."""
    vectors = [(name, "<f8", (num_columns,)) for name in ("centre", "lower", "upper")]
    return np.dtype(
        [*vectors, ("radius", "<f8")]
        + [(name, "<i8") for name in ("start", "stop", "left", "right")]
    )


def leaf_numbers(tree: Tree, order: Int[np.ndarray, "n"]) -> UInt[np.ndarray, "n"]:
    """The leaf that holds each point, in the smallest fitting unsigned type."""
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
    D(x_t, c) = R, where it is largest. With `radius`, bisection of a node ends as soon as its bound
    exceeds the radius, or a point of its ball is known to lie within.
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
        # A slope may be infinite at an end of the domain; both weights are positive.
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
    """Smallest divergences from q over the box of each node, exact up to rounding.

    `radius` is unused; all bounds share one signature.
    """
    del radius
    nearest = space.distances(np.clip(q, nodes["lower"], nodes["upper"]), q)
    return np.where(np.isfinite(nearest), nearest, 0) * (1 - SLACK)


NodeBounds = Callable[..., Float[np.ndarray, "m"]]
BOUNDS: dict[str, NodeBounds] = {"ball": ball_bounds, "box": box_bounds}


def leaves_within(
    tree: Tree, space: Sided, q: Float[np.ndarray, "p"], radius: float, node_bounds: NodeBounds
) -> Bool[np.ndarray, "leaves"]:
    """Whether each leaf may hold points within the radius of q, by descent from the root."""
    is_near = np.zeros(tree.num_leaves, bool)
    frontier = np.array([len(tree.nodes) - 1])
    while len(frontier):
        lower = node_bounds(space, tree.nodes[frontier], q, radius=radius)
        near = frontier[lower <= radius]
        is_near[near[near < tree.num_leaves]] = True
        parents = tree.nodes[near[near >= tree.num_leaves]]
        frontier = np.concatenate([parents["left"], parents["right"]])
    return is_near
