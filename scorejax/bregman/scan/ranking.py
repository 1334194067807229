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
"""Coordinates computed at a time: a megabyte in float64, so that temporaries fit the cache."""


class Neighbours(NamedTuple):
    """The k nearest points of each query, nearest first, and the work that it took."""

    ids: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    candidates: Int[np.ndarray, "q"]
    """Number of points whose distance was computed in double precision."""
    pages: Int[np.ndarray, "q"]
    """Number of pages of a disk index that were read; 0 in memory."""


class Within(NamedTuple):
    """The points within a radius of each query, nearest first, and the work that it took."""

    ids: list[Int[np.ndarray, "_"]]
    distances: list[Float[np.ndarray, "_"]]
    candidates: Int[np.ndarray, "q"]
    pages: Int[np.ndarray, "q"]


@runtime_checkable
class Points(Protocol):
    """Points with a divergence and its order of arguments."""

    points: np.ndarray
    divergence: Divergence
    side: str


@dataclasses.dataclass
class Best:
    """The best k points so far of each query; it is updated in place.

    Missing ones have infinite distance and a number of n or more.
    """

    ids: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    candidates: Int[np.ndarray, "q"]

    @classmethod
    def none(cls, num_queries: int, k: int) -> "Best":
        """No points at all."""
        shape = (num_queries, k)
        none = np.iinfo(np.int64).max
        return cls(np.full(shape, none), np.full(shape, np.inf), np.zeros(num_queries, np.int64))

    def put(self, queries: Int[np.ndarray, "b"], other: "Best") -> None:
        """Replaces the best of these queries by those of `other`, and adds its candidates."""
        self.ids[queries], self.distances[queries] = other.ids, other.distances
        self.candidates[queries] += other.candidates

    def reset(self, query: int) -> None:
        """Drops the best of a query; its number of candidates stays."""
        self.ids[query], self.distances[query] = np.iinfo(np.int64).max, np.inf

    def neighbours(self) -> Neighbours:
        """The best as the answer of an index in memory, which has no pages."""
        return Neighbours(self.ids, self.distances, self.candidates, np.zeros_like(self.candidates))


def rank(
    index: Points, queries: Float[np.ndarray, "q d"], rows: Int[np.ndarray, "q m"], k: int
) -> Best:
    """The k nearest of each query's candidate rows; a row number of n or more stands for none."""
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
    else:  # NumPy releases the interpreter's lock while it computes.
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
    """Ranks more rows, of any number, into the best of one query."""
    k = best.ids.shape[1]
    best.candidates[query] += len(rows)
    step = max(1, PIECE // queries.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        ids = np.concatenate([best.ids[query], part])
        distances = np.concatenate([best.distances[query], _distances(index, queries[query], part)])
        order = np.lexsort((ids, distances))[:k]
        best.ids[query], best.distances[query] = ids[order], distances[order]


def within(
    index: Points, query: Float[np.ndarray, "d"], rows: Int[np.ndarray, "m"], radius: float
) -> tuple[Int[np.ndarray, "_"], Float[np.ndarray, "_"]]:
    """Returns the rows within the radius of a query, nearest first, and their distances."""
    step = max(1, PIECE // len(query))
    pieces = [rows[start : start + step] for start in range(0, len(rows), step)]
    distances = [_distances(index, query, piece) for piece in pieces]
    distances = np.concatenate([np.zeros(0), *distances])
    rows, distances = rows[distances <= radius], distances[distances <= radius]
    order = np.lexsort((rows, distances))
    return rows[order], distances[order]


def _distances(index: Points, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Divergence of each row from its query, or from the one query; queries are coordinates."""
    points = index.divergence.coordinates(np.asarray(index.points[rows], np.float64))
    return Sided(index.divergence, index.side).distances(points, queries)


def _num_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
