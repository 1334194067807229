# SPDX-License-Identifier: Apache-2.0
"""Trees over points whose nodes bound the divergence of all points in them from below.

Every node has a Bregman ball and a box (`tree_building`). The bound of the ball is a
one-dimensional dual problem: bisection may stop anywhere, since the dual is a valid bound at every
step. The bound of the box has a closed form, for a divergence of each coordinate grows away from
the query. Source: Cayton 2008, Fast nearest neighbor retrieval for Bregman divergences.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

from scorejax.bregman.divergences.cauchy import ROUNDING
from scorejax.bregman.divergences.sided import Sided

SLACK = 1e-9
"""Share by which a bound is lowered, so that rounding never makes it exceed a divergence."""
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


def leaf_numbers(tree: Tree, order: Int[np.ndarray, "n"]) -> UInt[np.ndarray, "n"]:
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
