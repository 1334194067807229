# SPDX-License-Identifier: Apache-2.0
"""Approximate answers: all k nearest neighbours with a probability p, for fewer candidates.

The paper shrinks the product term of its searching bound by a quantile of <u, v>, as if the
quantile did not depend on which point has the k-th smallest bound. That is a heuristic, and a
cautious one. The conformal answer only assumes that future queries are exchangeable with the
calibration queries. Of m scores, the one of rank ceil((m + 1) p) then bounds the next with
probability p or more, for any m and any data. The score of a query is how far the filter had to go
for all its neighbours.
Source: arXiv:2006.00227; Vovk et al. 2005, Algorithmic learning in a random world.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from scorejax.bregman.divergences.cauchy import query_terms
from scorejax.bregman.index import filters
from scorejax.bregman.index.ball_tree import BOUNDS
from scorejax.bregman.index.bregman_index import BregmanIndex
from scorejax.bregman.index.filters import SearchingBound


class Calibration(NamedTuple):
    """Scores of exactly answered queries, for one index, filter, bound and k."""

    filter: str
    bound: str
    k: int
    scores: Float[np.ndarray, "m"]
    fingerprint: str = ""
    """That of the index, whose scores mean nothing for another one; "" in old pickles, for any."""

    def threshold(self, p: float) -> float:
        """The share of the exact search for p: 1 (exact) at p = 1 or with too few scores."""
        rank = math.ceil((len(self.scores) + 1) * p)
        exact = p == 1 or rank > len(self.scores)
        return 1.0 if exact else min(float(np.sort(self.scores)[rank - 1]), 1.0)


def paper_shrinkage(bound: SearchingBound, mean: float, variance: float, p: float) -> float:
    """c such that D <= mu + c kappa with probability p, given D <= mu + kappa.

    <u, v> is assumed normal with this mean and variance. c is at most 1, and 1 at p = 1.
    """
    mu, kappa, std = bound.middle.sum(), bound.reach.sum(), math.sqrt(max(variance, 0.0))
    if not (np.isfinite([mu, kappa, mean, std]).all() and kappa > 0 and std > 0):
        return 1.0
    mass = p * ndtr((kappa - mean) / std) + (1 - p) * ndtr((-mu - mean) / std)
    quantile = mean + std * ndtri(mass)
    return float(np.clip(quantile, -mu, kappa) / kappa)


def product_moments(index: BregmanIndex, q: Float[np.ndarray, "d"]) -> tuple[float, float]:
    """Mean and variance of <u, v> over the points, from the moments of u."""
    v = query_terms(index.space, index.gauge, q).vector
    return float(index.moments[0] @ v), float(v @ index.moments[1:] @ v)


def summed_score(
    index: BregmanIndex, q: Float[np.ndarray, "d"], exact: filters.Nearest, bound: str
):
    """The largest summed bound of a neighbour, as a share of the k-th distance."""
    bounds = filters.leaf_bounds(index, q, BOUNDS[bound])
    of_neighbours = sum(
        lower[leaves[exact.positions]] for lower, leaves in zip(bounds, index.leaves, strict=True)
    )
    largest = float(of_neighbours.max())
    return largest / exact.bound if largest > 0 else 0.0


def radius_score(index: BregmanIndex, q: Float[np.ndarray, "d"], exact: filters.Nearest) -> float:
    """The c for which mu + c kappa of the searching bound is the k-th distance."""
    query = filters.index_tuple(index, q)
    bound, _ = filters.searching_bound(index, query, len(exact.positions))
    excess = exact.bound - bound.middle.sum()
    reach = bound.reach.sum()
    if reach > 0 and np.isfinite(reach) and np.isfinite(excess):
        return float(excess / reach)
    return 1.0
