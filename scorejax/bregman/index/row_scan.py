# SPDX-License-Identifier: Apache-2.0
"""A scan of all rows of an index, for many queries at once, where no filter pays.

One matrix product per block of rows gives every divergence up to a known rounding error. Only rows
that may be nearer than the k-th so far are computed in the direct form, which keeps all digits.
"""

import numpy as np
from jaxtyping import Bool, Float

from scorejax.bregman.divergences.cauchy import ROUNDING, norm, point_vectors, query_terms
from scorejax.bregman.index.bregman_index import BregmanIndex
from scorejax.bregman.index.filters import Nearest

ROWS = 8192
QUERIES = 64
"""Queries scanned together; a block takes 50 MB beside the rows, for 128 columns."""


def scan(index: BregmanIndex, queries: Float[np.ndarray, "q d"], k: int) -> list[Nearest]:
    """The k nearest rows of each query."""
    nearest = []
    for start in range(0, len(queries), QUERIES):
        nearest += _scan(index, queries[start : start + QUERIES], k)
    return nearest


def _scan(index: BregmanIndex, queries: Float[np.ndarray, "q d"], k: int) -> list[Nearest]:
    nearest = [Nearest(k, index.ids) for _ in queries]
    forms = [query_terms(index.space, index.gauge, q) for q in queries]
    per_page = index.rows.rows_per_page
    step = -(-ROWS // per_page) * per_page
    for start in range(0, index.num_points, step):
        stop = min(start + step, index.num_points)
        x = np.asarray(index.rows.block(start, stop), np.float64)
        middle, rounding = _products(index, x, slice(start, stop), forms)
        thresholds = np.array([near.bound for near in nearest])
        # Not "<=", so that NaN, from overflow, is computed directly.
        is_near = ~(middle - rounding > thresholds[:, None])
        for i in np.flatnonzero(is_near.any(axis=1)):
            rows = np.flatnonzero(is_near[i])
            rows = rows[_may_be_nearest(middle[i, rows], rounding[i, rows], k)]
            nearest[i].add(start + rows, index.space.distances(x[rows], queries[i]))
    return nearest


def _may_be_nearest(
    middle: Float[np.ndarray, "m"], rounding: Float[np.ndarray, "m"], k: int
) -> Bool[np.ndarray, "m"]:
    """Whether each divergence, known up to rounding, may be among the k smallest."""
    if len(middle) <= k:
        return np.ones(len(middle), bool)
    upper = np.where(np.isnan(middle), np.inf, middle + rounding)
    return ~(middle - rounding > np.partition(upper, k - 1)[k - 1])


def _products(index, x, block, forms):
    """Divergences (q, rows) by the inner product, and bounds on their rounding errors."""
    terms, vectors, extents = (np.stack(field) for field in zip(*forms, strict=True))
    values = index.tuples.values[block]
    heights, lengths = values[..., 0].sum(axis=1), norm(values[..., 1])
    middle = vectors @ point_vectors(index.space, index.gauge, x).T
    middle += heights
    middle += terms.sum(axis=(1, 2))[:, None]
    of_points, reach = index.tuples.sizes[0].sum(), norm(index.tuples.sizes[1])
    norms, extents = norm(vectors), norm(extents)
    rounding = np.multiply.outer(norms + extents, lengths)
    rounding += (np.abs(terms).sum(axis=(1, 2)) + reach * (norms + extents))[:, None]
    # Terms of points are never negative, except for the gauge "none".
    rounding += of_points if index.gauge.name == "none" else heights
    rounding *= ROUNDING
    return middle, rounding
