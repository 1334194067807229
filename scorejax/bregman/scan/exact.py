# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours under a Bregman divergence by a scan of all points in memory.

A device scores the points in single precision by one matrix product (`three_point`, `block_scan`)
and keeps a few more candidates than asked for. The host ranks these by the divergence itself in
double precision, ties by number. A bound on the rounding of the scores tells whether any other
point may belong to the answer; if so, a second scan fetches every point that may. The answer is
therefore always that of brute force in double precision. A few rows that are much larger than all
others are left out of the scans, and always ranked (`outlying`).
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, Real

from scorejax.bregman.divergences import Divergence, get
from scorejax.bregman.divergences.divergence import points_come_first
from scorejax.bregman.divergences.three_point import Frame, QueryForm, frame_about_mean
from scorejax.bregman.scan import block_scan, ranking
from scorejax.bregman.scan.memory import free_bytes
from scorejax.bregman.scan.outlying import LargestRows
from scorejax.bregman.scan.ranking import Neighbours

BLOCK_ROWS = 2**18
MAX_TILE = 256
"""Largest number of queries in one product; more take more memory and no less time."""
GATHER_BYTES = 2**26
"""Largest memory on a device for the candidates of a tile of queries."""
READ_BYTES = 2**24
"""Bytes of points that are converted to double precision at a time while an index is built."""


@dataclasses.dataclass(frozen=True, eq=False)
class ExactIndex:
    """Points in memory, prepared for scans.

    Blocks take 4 n (d + 1) bytes, divided among the devices; if streamed, three blocks per device.
    The host keeps `points` as the caller passed them if they are read-only or a memory map, else a
    copy, since they may change.
    """

    points: Float[np.ndarray, "n d"]
    divergence: Divergence
    side: str
    frame: Frame
    outlying: Int[np.ndarray, "o"]
    """Numbers of the points that are in no block, and candidates of every query."""
    shape: tuple[int, int]
    devices: tuple[jax.Device, ...]
    resident: tuple[block_scan.Block, ...] | None = None
    """Blocks on the devices; None if every search makes and streams them."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        """Pickles and copies hold the points, and choose devices when they are loaded."""
        build = functools.partial(build_index, side=self.side)
        return build, (np.asarray(self.points), self.divergence)

    def blocks(self) -> Iterator[tuple[int, block_scan.Block]]:
        """Yields first row and block, on the devices in turn."""
        size = self.shape[0] * self.shape[1]
        starts = range(0, len(self.points), size)
        if self.resident is not None:
            yield from zip(starts, self.resident, strict=True)
            return
        for number, start in enumerate(starts):
            forms = self._forms(start, start + size)
            block = block_scan.block_of(forms, self.shape, self.points.shape[1])
            yield start, jax.device_put(block, self.devices[number % len(self.devices)])

    def _forms(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in _pieces(self.points[start:stop]):
            with np.errstate(all="ignore"):
                vectors, heights = self.frame.point_form(self.divergence.coordinates(rows))
            left_out = self.outlying[(self.outlying >= start) & (self.outlying < start + len(rows))]
            # As padding, which comes after all points.
            vectors[left_out - start], heights[left_out - start] = 0, np.inf
            start += len(rows)
            yield vectors, heights


def build_index(
    points: Real[ArrayLike, "n d"],
    divergence: str | Divergence = "squared_euclidean",
    *,
    side: str = "data_first",
    devices: Sequence[jax.Device] | None = None,
    device_bytes: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> ExactIndex:
    """An index that answers by D(point, query), or D(query, point) with side="query_first".

    Blocks stay on the devices if they fit in `device_bytes` each, by default half of the free
    memory. Otherwise every search streams them, so that a memory map may exceed the memory.
    Raises: ValueError for no points, or points outside the divergence's domain.
    """
    divergence = get(divergence)
    points = _kept(points)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"an index needs points (n, d), at least one; got {points.shape}.")
    if block_rows < 1:
        raise ValueError(f"build_index needs block_rows >= 1; got {block_rows}.")
    num_blocks = -(-len(points) // block_rows)
    shape = block_scan.block_shape(-(-len(points) // num_blocks))
    devices = tuple(devices or jax.local_devices())
    frame, left_out = _fitted_frame(points, divergence, side)
    index = ExactIndex(points, divergence, side, frame, left_out, shape, devices)
    needed = 4 * shape[0] * shape[1] * (points.shape[1] + 1) * -(-num_blocks // len(devices))
    budget = free_bytes(devices) // 2 if device_bytes is None else device_bytes
    if not frame.representable() or needed > budget:
        return index
    return dataclasses.replace(index, resident=tuple(block for _, block in index.blocks()))


@np.errstate(all="ignore")  # Overflow gives infinity or NaN; such queries are scanned again.
def search(index: ExactIndex, queries: Real[ArrayLike, "q d"], k: int) -> Neighbours:
    """The k points of smallest divergence for each query, nearest first, ties by number.

    Memory beside the index: on a device 4 t (n_B / 8 + 8 m d) bytes for a tile of t <= 256 queries,
    blocks of n_B rows and m = 2 k + 12 candidates or a few more; on the host 32 q m bytes
    and 32 MiB, and n_B t bytes where rounding calls for a second scan.
    Raises: ValueError unless 1 <= k <= n and the queries have d columns and lie in the domain.
    """
    num_points = len(index.points)
    if not (isinstance(k, int | np.integer) and 1 <= k <= num_points):
        raise ValueError(
            f"search needs a whole number 1 <= k <= {num_points}, the number of points; got {k}."
        )
    queries = query_coordinates(index, queries)
    form = index.frame.query_form(queries)
    best = ranking.Best.none(len(queries), k)
    bounded = np.flatnonzero(form.representable() & index.frame.representable())
    if len(bounded):
        part = form.take(bounded)
        scores, rows, bound = _candidates(index, part, _num_candidates(k, num_points))
        # Of two scores this far apart, the larger one certainly belongs to the farther point.
        certain = scores[:, k - 1] + 2 * part.slack / part.scales
        rows = np.where(scores <= certain[:, None], rows, num_points)
        left_out = np.broadcast_to(index.outlying, (len(rows), len(index.outlying)))
        rows = np.concatenate([rows, left_out], axis=1)
        best.put(bounded, ranking.rank(index, queries[bounded], rows, k))
        # No other point is nearer than this. One at equal distance may still win by its number.
        floor = part.scales * bound + part.offsets - part.slack
        short = bounded[~(floor > best.distances[bounded, -1])]
        _add_all_within(index, form.take(short), queries, short, best)
    for query in np.setdiff1d(np.arange(len(queries)), bounded).tolist():
        best.reset(query)
        ranking.add(index, queries, query, np.arange(num_points), best)
    return best.neighbours()


def query_coordinates(index: ExactIndex, queries: ArrayLike) -> Float[np.ndarray, "q d"]:
    """Coordinates of queries in float64. Raises: ValueError unless they fit the index."""
    dim = index.points.shape[1]
    queries = index.divergence.check_queries(queries, side=index.side)
    if queries.shape[1] != dim:
        raise ValueError(f"queries need {dim} columns, as the points; got {queries.shape[1]}.")
    return index.divergence.coordinates(queries.astype(np.float64))


def _candidates(
    index: ExactIndex, form: QueryForm, num: int
) -> tuple[Float[np.ndarray, "q m"], Int[np.ndarray, "q m"], Float[np.ndarray, "q"]]:
    """The smallest scores in order, their rows (n for none), and a lower bound of all others."""
    num_points, dim = index.points.shape
    tile = _tile(len(form.scales), num, dim)
    scores = np.full((len(form.scales), 0), np.inf, np.float32)
    rows, bound = scores.astype(np.int64), np.full(len(scores), np.inf)
    for start, tiles in _ahead(
        index,
        lambda block: [block_scan.smallest_scores(block, *q, num=num) for q in form.tiles(tile)],
    ):
        new = [np.concatenate(parts)[: len(rows)] for parts in zip(*tiles, strict=True)]
        scores = np.concatenate([scores, new[0]], axis=1)
        rows = np.concatenate([rows, new[1] + start], axis=1)
        bound = np.minimum(bound, new[2])
        order = np.argsort(scores, axis=1)
        scores, rows = (np.take_along_axis(array, order, axis=1) for array in (scores, rows))
        bound = np.minimum(bound, np.min(scores[:, num:], axis=1, initial=np.inf))
        scores, rows = scores[:, :num], rows[:, :num]
    return scores, np.where(np.isfinite(scores), rows, num_points), bound


def _add_all_within(
    index: ExactIndex,
    form: QueryForm,
    queries: Float[np.ndarray, "a d"],
    numbers: Int[np.ndarray, "q"],
    best: ranking.Best,
) -> None:
    """Ranks all points that may be as near as the k-th best so far, for the queries `numbers`."""
    radii = best.distances[numbers, -1]
    for number in numbers.tolist():
        best.reset(number)
    for i, rows in rows_within(index, form, radii):
        ranking.add(index, queries, int(numbers[i]), rows, best)


def rows_within(
    index: ExactIndex, form: QueryForm, radii: Float[np.ndarray, "a"]
) -> Iterator[tuple[int, Int[np.ndarray, "_"]]]:
    """Yields a query's number and rows of points, all that may lie within its radius, in parts."""
    if not len(radii):
        return
    yield from ((i, index.outlying) for i in range(len(radii)))
    limits = (radii + form.slack - form.offsets) / form.scales
    limits = np.nextafter(limits.astype(np.float32), np.float32(np.inf))
    tile = _tile(len(radii), 1, index.points.shape[1])
    padded = [np.resize(limits[i : i + tile], tile) for i in range(0, len(limits), tile)]

    def compare(block: block_scan.Block) -> list:
        tiles = zip(form.tiles(tile), padded, strict=True)
        return [(block_scan.at_most(block, *query, limit),) for query, limit in tiles]

    for start, within in _ahead(index, compare):
        for i in range(len(radii)):
            rows = start + np.flatnonzero(within[i // tile][0][i % tile])
            # Without padding, and the outlying rows, which are within an infinite limit too.
            yield i, rows[(rows < len(index.points)) & ~np.isin(rows, index.outlying)]


def _ahead(
    index: ExactIndex, launch: Callable[[block_scan.Block], list]
) -> Iterator[tuple[int, list[tuple[np.ndarray, ...]]]]:
    """Yields first row and `launch` of each block, while devices work on the next blocks."""
    running = collections.deque()
    for start, block in index.blocks():
        running.append((start, launch(block)))
        if len(running) > len(index.devices):
            first, results = running.popleft()
            yield first, jax.device_get(results)
    for first, results in running:
        yield first, jax.device_get(results)


def _kept(points: ArrayLike) -> np.ndarray:
    """The points, or a copy if somebody may write to their memory, which no file holds."""
    kept = array = np.asanyarray(points)
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return kept
        if array.flags.writeable:
            return np.array(kept)
        array = array.base
    return kept


def _fitted_frame(
    points: np.ndarray, divergence: Divergence, side: str
) -> tuple[Frame, Int[np.ndarray, "o"]]:
    """The frame about the mean of a sample in units of all rows but the outlying ones, and these.

    Raises: as `Divergence.check_points`.
    """
    size = _rows_at_a_time(points)
    for first in range(0, len(points), size):
        divergence.check_points(points[first : first + size], side=side, first_row=first)
    sample = np.asarray(points[:: -(-len(points) // size)], np.float64)
    frame = frame_about_mean(
        divergence, divergence.coordinates(sample), points_first=points_come_first(side)
    )
    largest, first = LargestRows(3), 0
    for rows in _pieces(points):
        largest.add(frame.sizes(divergence.coordinates(rows)), first)
        first += len(rows)
    left_out = largest.outlying()
    return frame.in_units_of(largest.largest(without=left_out)), left_out


def _pieces(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yields successive rows in float64, READ_BYTES at a time."""
    size = _rows_at_a_time(points)
    for start in range(0, len(points), size):
        yield np.asarray(points[start : start + size], np.float64)


def _rows_at_a_time(points: np.ndarray) -> int:
    return max(1, READ_BYTES // (8 * points.shape[1]))


def _num_candidates(k: int, num_points: int) -> int:
    """Candidates per query: second scans are rare, and a multiple of 8 limits compilations."""
    return min(-(-(2 * k + 12) // 8) * 8, num_points)


def _tile(num_queries: int, num: int, dim: int) -> int:
    """Number of queries in one product, a power of two."""
    most = max(1, min(MAX_TILE, GATHER_BYTES // (4 * block_scan.GROUP * num * dim)))
    return min(1 << (most.bit_length() - 1), 1 << (num_queries - 1).bit_length())
