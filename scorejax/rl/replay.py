# SPDX-License-Identifier: Apache-2.0
"""A memory of transitions on the device: a ring buffer for each environment.

All environments write at the same position, so that a vector of transitions is stored by one slice,
and devices share the rows between them. A transition is stored whole, with the observation that
followed it: no pair is ever made of what lies side by side in the ring.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from scorejax.random import Rng, draw_rows
from scorejax.rl.interface import require_count
from scorejax.typing import Batch, PRNGKeyArray, PyTree, Shape


class Replay(NamedTuple):
    """The last transitions of e environments, the oldest of which are overwritten first."""

    data: Batch
    """name -> (e, capacity, ...)."""
    position: Int[Array, ""]
    """The slot to be written next."""
    size: Int[Array, ""]
    """How many slots of each environment are filled."""


def create(num_envs: int, capacity: int, example: PyTree) -> Replay:
    """An empty memory of `capacity` transitions for each environment.

    `example` is one transition of one environment: arrays, or what has their shape and dtype.
    Raises: ValueError unless both numbers are at least 1.
    """
    require_count(num_envs=num_envs, capacity=capacity)
    empty = lambda leaf: jnp.zeros((num_envs, capacity, *leaf.shape), leaf.dtype)
    return Replay(jax.tree.map(empty, example), jnp.int32(0), jnp.int32(0))


def capacity(replay: Replay) -> int:
    """The number of slots of each environment."""
    return jax.tree.leaves(replay.data)[0].shape[1]


def add(replay: Replay, transitions: Batch) -> Replay:
    """Stores one transition (e, ...) of each environment in place of the oldest."""
    write = lambda ring, row: jax.lax.dynamic_update_slice_in_dim(
        ring, row[:, None].astype(ring.dtype), replay.position, axis=1
    )
    data = jax.tree.map(write, replay.data, transitions)
    position = (replay.position + 1) % capacity(replay)
    return Replay(data, position, jnp.minimum(replay.size + 1, capacity(replay)))


def sample(rng: Rng, replay: Replay, batch_size: int) -> Batch:
    """Draws transitions (b, ...) uniformly, with replacement, from all that are stored.

    Of an empty memory they are zeros.
    """
    return recent(rng, replay, batch_size, capacity(replay))


def recent(rng: Rng, replay: Replay, batch_size: int, n: int) -> Batch:
    """Draws transitions (b, ...) uniformly, with replacement, from each environment's last n."""
    num_envs = jax.tree.leaves(replay.data)[0].shape[0]
    window = jnp.maximum(jnp.minimum(replay.size, n), 1)
    # One number for both coordinates: it is below 2^31 wherever the memory fits.
    number = draw_rows(_integers_below(num_envs * window), rng, (batch_size,))
    env, age = number // window, number % window
    slot = (replay.position - 1 - age) % capacity(replay)
    return jax.tree.map(lambda ring: ring[env, slot], replay.data)


def _integers_below(bound: Array) -> Callable[[PRNGKeyArray, Shape], Array]:
    return lambda rng, shape: jax.random.randint(rng, shape, 0, bound)
