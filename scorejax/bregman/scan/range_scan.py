# SPDX-License-Identifier: Apache-2.0
"""All points within a radius of each query, by a scan of the points in memory."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Real

from scorejax.bregman.scan import exact, ranking
from scorejax.bregman.scan.ranking import Within


@np.errstate(all="ignore")  # as for `exact.search`
def range_search(index: exact.ExactIndex, queries: Real[ArrayLike, "q d"], radius: float) -> Within:
    """All points whose divergence from a query is at most the radius, nearest first.

    Devices find those that may be, in single precision; the host measures them in double precision.
    Raises: ValueError unless radius >= 0, and for queries as `exact.search`.
    """
    if not radius >= 0:
        raise ValueError(f"range_search needs radius >= 0; got {radius}.")
    queries, everything = exact.query_coordinates(index, queries), np.arange(len(index.points))
    form = index.frame.query_form(queries)
    bounded = form.representable() & index.frame.representable()
    parts = [[everything[:0]] if one else [everything] for one in bounded]
    numbers = np.flatnonzero(bounded)
    for i, rows in exact.rows_within(
        index, form.take(numbers), np.full(len(numbers), float(radius))
    ):
        parts[numbers[i]].append(rows)
    rows = [np.concatenate(part) for part in parts]
    pairs = zip(queries, rows, strict=True)
    found = [ranking.within(index, query, some, radius) for query, some in pairs]
    counts = np.array([len(some) for some in rows], np.int64)
    return Within([f[0] for f in found], [f[1] for f in found], counts, np.zeros_like(counts))
