# SPDX-License-Identifier: Apache-2.0
"""Builds and searches with either engine: the scan in memory, or BrePartition's index."""

import os
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Real

from scorejax.bregman.divergences import Divergence
from scorejax.bregman.index import brepartition
from scorejax.bregman.index.bregman_index import BregmanIndex
from scorejax.bregman.scan import exact, range_scan
from scorejax.bregman.scan.ranking import Neighbours, Within


def build_index(
    points: Real[ArrayLike, "n d"],
    divergence: str | Divergence = "squared_euclidean",
    *,
    num_parts: int | None = None,
    leaf_size: int = 64,
    path: str | os.PathLike | None = None,
    **options: Any,
) -> exact.ExactIndex | BregmanIndex:
    """An index of points: BrePartition's if `path` or `num_parts` is given, else the exact scan.

    `options` go to `exact.build_index` or `brepartition.build_index`. Raises: ValueError as these.
    """
    if path is None and num_parts is None:
        return exact.build_index(points, divergence, **options)
    return brepartition.build_index(
        points, divergence, num_parts=num_parts, leaf_size=leaf_size, path=path, **options
    )


def search(
    index: exact.ExactIndex | BregmanIndex,
    queries: Real[ArrayLike, "q d"],
    k: int,
    *,
    p: float | None = None,
    **options: Any,
) -> Neighbours:
    """The k nearest points of each query: exact, or all k with a probability of at least p.

    A scan is exact for any p. Raises: ValueError as `exact.search` or `brepartition.search`.
    """
    brepartition.check_probability(p)
    if isinstance(index, exact.ExactIndex):
        return exact.search(index, queries, k, **options)
    return brepartition.search(index, queries, k, p=p, **options)


def range_search(
    index: exact.ExactIndex | BregmanIndex,
    queries: Real[ArrayLike, "q d"],
    radius: float,
    **options: Any,
) -> Within:
    """All points whose divergence from a query is at most the radius, nearest first.

    `options` go to `brepartition.range_search`. Raises: ValueError as this, and for options of a
    scan, which has none.
    """
    if isinstance(index, exact.ExactIndex):
        if options:
            raise ValueError(f"range_search of a scan takes no options; got {sorted(options)}.")
        return range_scan.range_search(index, queries, radius)
    return brepartition.range_search(index, queries, radius, **options)
