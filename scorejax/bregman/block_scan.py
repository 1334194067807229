# SPDX-License-Identifier: Apache-2.0
"""Scans of one block of points on one device: the smallest scores, or all below a threshold.

A score is height_x height_q - <vector_x, vector_q>. A block is cut into chunks whose scores stay in
the cache. Of each chunk only the minimum of every GROUP rows is kept, which costs next to nothing
beside the product; the smallest m scores lie in the m groups of smallest minimum, and only those
are scored again. Sorting thus sees an eighth of the numbers.
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
ROW_MULTIPLE = 32


class Block(NamedTuple):
    """Points in the form of `three_point`, in chunks; rows of padding have infinite height."""

    vectors: Float[ArrayLike, "chunks rows d"]
    heights: Float[ArrayLike, "chunks rows"]


class Smallest(NamedTuple):
    """The rows of smallest score, in order, and a number that no other row's score is below."""

    scores: Float[Array, "q m"]
    rows: Int[Array, "q m"]
    bound: Float[Array, "q"]


def block_shape(num_rows: int) -> tuple[int, int]:
    """Chunks, and rows of each, for blocks of at least num_rows rows."""
    chunks = -(-num_rows // CHUNK_ROWS)
    rows = -(-num_rows // (chunks * ROW_MULTIPLE)) * ROW_MULTIPLE
    return chunks, rows


def make_block(
    forms: Iterable[tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "b"]]],
    shape: tuple[int, int],
    dim: int,
) -> Block:
    """A block of that shape in float32 on the host, from pieces of vectors and heights."""
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

    def minima(carry: None, chunk: Block) -> tuple[None, Array]:
        scores = _scores(*chunk, vectors, heights)
        return carry, jnp.min(scores.reshape(GROUP, stride, -1), axis=0)

    _, least = jax.lax.scan(minima, None, block)
    _, groups, group_bound = _least(least.reshape(chunks * stride, -1).T, num)
    # Group g of a chunk is its rows g, g + stride, ...: minima of whole rows, in vector registers.
    first = groups // stride * rows + groups % stride
    members = (first[..., None] + stride * jnp.arange(GROUP)).reshape(len(groups), -1)
    near = block.vectors.reshape(chunks * rows, -1)[members]
    products = jnp.einsum("qnd,qd->qn", near, vectors, precision=jax.lax.Precision.HIGHEST)
    again = block.heights.reshape(-1)[members] * heights[:, None] - products
    scores, order, bound = _least(again, num)
    found = jnp.take_along_axis(members, order, axis=1)
    return Smallest(scores, found, jnp.minimum(bound, group_bound))


@jax.jit
def at_most(
    block: Block,
    vectors: Float[Array, "q d"],
    heights: Float[Array, "q"],
    thresholds: Float[Array, "q"],
) -> Bool[Array, "n q"]:
    """Whether each row's score is at most the query's threshold."""

    def compare(carry: None, chunk: Block) -> tuple[None, Array]:
        return carry, _scores(*chunk, vectors, heights) <= thresholds[None]

    _, found = jax.lax.scan(compare, None, block)
    return found.reshape(-1, len(thresholds))


def _scores(
    points: Float[Array, "rows d"],
    point_heights: Float[Array, "rows"],
    vectors: Float[Array, "q d"],
    heights: Float[Array, "q"],
) -> Float[Array, "rows q"]:
    # HIGHEST: on other devices than CPUs the default rounds the factors to fewer bits.
    products = jnp.matmul(points, vectors.T, precision=jax.lax.Precision.HIGHEST)
    return point_heights[:, None] * heights[None] - products


def _least(values: Float[Array, "q n"], num: int) -> tuple[Array, Array, Array]:
    """The num smallest of each row, where they are, and the smallest of the others."""
    size = values.shape[1]
    negated, order = jax.lax.top_k(-values, min(num + 1, size))
    bound = -negated[:, num] if size > num else jnp.full(len(values), jnp.inf)
    return -negated[:, :num], order[:, :num], bound
