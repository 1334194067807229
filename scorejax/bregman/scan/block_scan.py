# SPDX-License-Identifier: Apache-2.0
"""Scans one block of points on one device: the smallest scores, or all below a threshold.

A score is height_x height_q - <vector_x, vector_q>. A block is cut into chunks whose scores fit the
cache. Only the minimum of every 8 rows and of every 64 is kept, which costs little compared to the
product. The smallest m scores lie in the m groups of smallest minimum. So the sort sees a 64th of
the numbers, then 8 m of them, and only 8 m rows are scored again.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

GROUP = 8
CHUNK_ROWS = 4096
"""With fewer rows a second core waits at both ends of each product; more rows leave the cache."""
FEW = 4
"""Largest number of queries that are multiplied one by one: reading the points is then the limit,
and from the second product on they are in the cache."""
ROW_MULTIPLE = GROUP * GROUP


class Block(NamedTuple):
    """Points in the form of `three_point`, in chunks; padding rows have infinite height."""

    vectors: Float[ArrayLike, "chunks rows d"]
    heights: Float[ArrayLike, "chunks rows"]


class Smallest(NamedTuple):
    """The rows of smallest score, in order, and a lower bound of all other scores."""

    scores: Float[Array, "q m"]
    rows: Int[Array, "q m"]
    bound: Float[Array, "q"]


def block_shape(num_rows: int) -> tuple[int, int]:
    """Numbers of chunks and of rows in each, for blocks of at least num_rows rows."""
    chunks = -(-num_rows // CHUNK_ROWS)
    rows = -(-num_rows // (chunks * ROW_MULTIPLE)) * ROW_MULTIPLE
    return chunks, rows


def block_of(
    forms: Iterable[tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b"]]],
    shape: tuple[int, int],
    dim: int,
) -> Block:
    """A float32 block (chunks, rows) = `shape` on the host, from pieces of vectors and heights."""
    vectors = np.zeros((shape[0] * shape[1], dim), np.float32)
    heights = np.full(len(vectors), np.inf, np.float32)
    start = 0
    for some_vectors, some_heights in forms:
        stop = start + len(some_heights)
        vectors[start:stop], heights[start:stop] = some_vectors, some_heights
        start = stop
    return Block(vectors.reshape(*shape, dim), heights.reshape(shape))


@functools.partial(jax.jit, static_argnames="num")
def smallest_scores(
    block: Block, vectors: Float[Array, "q d"], heights: Float[Array, "q"], *, num: int
) -> Smallest:
    """The num smallest scores of each query. Memory: 4 q (n / GROUP + num GROUP d) bytes."""
    chunks, rows = block.heights.shape
    stride = rows // GROUP

    def minima(carry: None, chunk: Block) -> tuple[None, tuple[Array, Array]]:
        least = _group_minima(_scores(*chunk, vectors, heights))
        return carry, (least, _group_minima(least))

    _, (of_8, of_64) = jax.lax.scan(minima, None, block)
    _, place, bound_64 = _least(jnp.swapaxes(of_64, 0, 1).reshape(len(vectors), -1), num)
    chunk, first = place // (stride // GROUP), place % (stride // GROUP)
    groups = _members(first, stride // GROUP) + (chunk * stride)[..., None]
    groups = groups.reshape(len(vectors), -1)
    chunk, first = groups // stride, groups % stride
    some = of_8[chunk, jnp.arange(len(vectors))[:, None], first]
    _, place, bound_8 = _least(some, num)
    chunk, first = (jnp.take_along_axis(array, place, axis=1) for array in (chunk, first))
    members = _members(first, stride) + (chunk * rows)[..., None]
    members = members.reshape(len(vectors), -1)
    near = block.vectors.reshape(chunks * rows, -1)[members]
    products = jnp.einsum("qnd,qd->qn", near, vectors, precision=jax.lax.Precision.HIGHEST)
    again = block.heights.reshape(-1)[members] * heights[:, None] - products
    scores, order, bound = _least(again, num)
    smallest = jnp.take_along_axis(members, order, axis=1)
    return Smallest(scores, smallest, jnp.minimum(bound, jnp.minimum(bound_8, bound_64)))


@jax.jit
def at_most(
    block: Block,
    vectors: Float[Array, "q d"],
    heights: Float[Array, "q"],
    thresholds: Float[Array, "q"],
) -> Bool[Array, "q n"]:
    """Whether each row's score is at most the query's threshold."""

    def compare(carry: None, chunk: Block) -> tuple[None, Array]:
        return carry, _scores(*chunk, vectors, heights) <= thresholds[:, None]

    _, within = jax.lax.scan(compare, None, block)
    return jnp.swapaxes(within, 0, 1).reshape(len(thresholds), -1)


def _group_minima(values: Float[Array, "q n"]) -> Float[Array, "q g"]:
    """Minima over the groups i, i + n / 8, ...; long strides suit vector registers."""
    return jnp.min(values.reshape(len(values), GROUP, -1), axis=1)


def _members(group: Int[Array, "q m"], stride: int) -> Int[Array, "q m s"]:
    return group[..., None] + stride * jnp.arange(GROUP)[None, None]


def _scores(
    points: Float[Array, "rows d"],
    point_heights: Float[Array, "rows"],
    vectors: Float[Array, "q d"],
    heights: Float[Array, "q"],
) -> Float[Array, "q rows"]:
    # HIGHEST: on other devices than CPUs the default rounds the factors to fewer bits.
    factors = jnp.split(vectors, len(vectors)) if len(vectors) <= FEW else [vectors]
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    products = jnp.concatenate([product(factor, points.T) for factor in factors])
    return heights[:, None] * point_heights[None] - products


def _least(values: Float[Array, "q n"], num: int) -> tuple[Array, Array, Array]:
    """The num smallest values of each row, their places, and the smallest of the others."""
    size = values.shape[1]
    # Without the barrier XLA's CPU compiler joins the slices below with those of top_k, no longer
    # sees that it is a top_k, and sorts everything: 80 times slower.
    negated, order = jax.lax.optimization_barrier(jax.lax.top_k(-values, min(num + 1, size)))
    bound = -negated[:, num] if size > num else jnp.full(len(values), jnp.inf)
    return -negated[:, :num], order[:, :num], bound
