# SPDX-License-Identifier: Apache-2.0
"""Ranking of candidates by the divergence itself in double precision, ties by number."""

import concurrent.futures
import dataclasses
import os
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from scorejax.bregman.divergences import Divergence
from scorejax.bregman.divergences.sided import Sided

PIECE = 2**17
"""Coordinates taken at a time: a megabyte, so that temporaries stay in the cache."""


class Neighbours(NamedTuple):
    """The k nearest points of each query, nearest first, and what finding them took."""

    ids: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    candidates: Int[np.ndarray, "q"]
    """Points whose distance was computed in double precision."""
    pages: Int[np.ndarray, "q"]
    """Pages of a disk index that were read; 0 in memory."""


@runtime_checkable
class Points(Protocol):
    """What has points, and a divergence of given argument order."""

    points: np.ndarray
    divergence: Divergence
    side: str


@dataclasses.dataclass
class Best:
    """The best k so far of each query; distance infinite and number n or more where there is none.

    The only thing here that changes.
    """

    ids: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    candidates: Int[np.ndarray, "q"]

    @classmethod
    def none(cls, num_queries: int, k: int) -> "Best":
        """The best where no point has been looked at."""
        shape = (num_queries, k)
        none = np.iinfo(np.int64).max
        return cls(np.full(shape, none), np.full(shape, np.inf), np.zeros(num_queries, np.int64))

    def put(self, queries: Int[np.ndarray, "b"], other: "Best") -> None:
        """Puts another's best in the place of these queries', and adds its candidates."""
        self.ids[queries], self.distances[queries] = other.ids, other.distances
        self.candidates[queries] += other.candidates

    def reset(self, query: int) -> None:
        """Forgets the best of a query, not how many were looked at."""
        self.ids[query], self.distances[query] = np.iinfo(np.int64).max, np.inf

    def neighbours(self) -> Neighbours:
        """The best as an answer, of an index in memory: without pages."""
        return Neighbours(self.ids, self.distances, self.candidates, np.zeros_like(self.candidates))


def rank(
    index: Points, queries: Float[np.ndarray, "q d"], rows: Int[np.ndarray, "q m"], k: int
) -> Best:
    """The k nearest of each query's own candidate rows; a row n or beyond is none."""
    best = Best.none(len(queries), k)
    distances = np.full(rows.shape, np.inf)
    which, place = np.nonzero(rows < len(index.points))
    step = max(1, PIECE // queries.shape[1])

    def measure(start: int) -> None:
        part = which[start : start + step], place[start : start + step]
        distances[part] = _distances(index, queries[part[0]], rows[part])

    starts = range(0, len(which), step)
    if len(starts) < 2:
        list(map(measure, starts))
    else:  # NumPy leaves the interpreter to others while it computes
        with concurrent.futures.ThreadPoolExecutor(_num_threads()) as threads:
            list(threads.map(measure, starts))
    order = np.lexsort((rows, distances))[:, :k]
    best.ids[:] = np.take_along_axis(rows, order, axis=1)
    best.distances[:] = np.take_along_axis(distances, order, axis=1)
    best.candidates += np.bincount(which, minlength=len(queries))
    return best


def add(
    index: Points,
    queries: Float[np.ndarray, "q d"],
    query: int,
    rows: Int[np.ndarray, "m"],
    best: Best,
) -> None:
    """Ranks more rows, any number of them, into the best of one query."""
    k = best.ids.shape[1]
    best.candidates[query] += len(rows)
    step = max(1, PIECE // queries.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        ids = np.concatenate([best.ids[query], part])
        distances = np.concatenate([best.distances[query], _distances(index, queries[query], part)])
        order = np.lexsort((ids, distances))[:k]
        best.ids[query], best.distances[query] = ids[order], distances[order]


def _distances(index: Points, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Divergence of each row, or each query's rows, from queries given in coordinates."""
    points = index.divergence.coordinates(np.asarray(index.points[rows], np.float64))
    return Sided(index.divergence, index.side).distances(points, queries)


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
