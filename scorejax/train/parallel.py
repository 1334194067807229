# SPDX-License-Identifier: Apache-2.0
"""Devices: the one place that maps programs over them.

Training is data parallel. Every local device holds the whole state, as arrays with a leading axis
of that size, and takes its share of each batch; with several processes each feeds its own share.
Inputs are laid out as the outputs are, over one axis of one name, or every step would be compiled
twice: once for the first state and once for those that it returned.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scorejax.train.step import TrainStep
from scorejax.typing import Batch, PyTree

AXIS = "devices"


def require_divisible(batch_size: int, *, accumulation: int = 1) -> None:
    """Raises ValueError unless every shard of every device gets as many examples as the next."""
    parts = jax.device_count() * accumulation
    if batch_size < 1 or batch_size % parts:
        below = batch_size // parts * parts
        nearest = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        raise ValueError(
            f"batch_size={batch_size} does not divide evenly over {jax.device_count()} device(s) "
            f"times accumulation={accumulation}; the nearest that does is {nearest}."
        )


def replicate(tree: PyTree) -> PyTree:
    """Copies a tree of arrays to every local device; leaves gain a leading axis."""
    num_devices = jax.local_device_count()

    def copies(leaf: Any) -> jax.Array:
        # A copy even of the first: what is donated later must not share memory with the caller's.
        stacked = np.repeat(np.asarray(leaf)[None], num_devices, axis=0)
        return jax.device_put(stacked, _sharding())

    return jax.tree.map(copies, tree)


def unreplicate(tree: PyTree) -> PyTree:
    """The first device's copy of a replicated tree, as NumPy arrays that nothing else refers to."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0))[0], tree)


def shard(batches: Sequence[Batch]) -> Batch:
    """Lays out this process's batches, one a step, as (local device, step, example, ...)."""
    num_devices = jax.local_device_count()

    def split(*leaves: Any) -> jax.Array:
        parts = [np.reshape(leaf, (num_devices, -1, *np.shape(leaf)[1:])) for leaf in leaves]
        return jax.device_put(np.stack(parts, axis=1), _sharding())

    return jax.tree.map(split, *batches)


def map_step(step: TrainStep) -> TrainStep:
    """Maps a step, made with axis_name=AXIS, over the devices of all processes.

    The mapped step takes a replicated state, which it donates (its memory is used again and the
    array that was passed is gone), a sharded batch and one key for all; it returns metrics that are
    equal on all devices, once.
    """
    return jax.pmap(
        step, axis_name=AXIS, in_axes=(0, 0, None), out_axes=(0, None), donate_argnums=0
    )


class InFlight:
    """Calls that were dispatched and not yet waited for, at most `limit` of them.

    Two keep the devices busy while the host prepares the next batch. Without a bound the host runs
    far ahead, holds every batch in memory, and on simulated CPU devices can exhaust the threads
    that their collectives wait in, a deadlock.
    """

    def __init__(self, limit: int = 2) -> None:
        self._limit = limit
        self._calls: collections.deque[tuple[int, PyTree]] = collections.deque()

    def push(self, step: int, metrics: PyTree) -> list[tuple[int, PyTree]]:
        """Adds a call; waits for, and returns, those beyond the limit, metrics as NumPy arrays."""
        self._calls.append((step, metrics))
        return self._pop_until(self._limit)

    def drain(self) -> list[tuple[int, PyTree]]:
        """Waits for all calls and returns them."""
        return self._pop_until(0)

    def _pop_until(self, count: int) -> list[tuple[int, PyTree]]:
        finished = []
        while len(self._calls) > count:
            step, metrics = self._calls.popleft()
            finished.append((step, jax.device_get(metrics)))
        return finished


def map_over_devices(fn: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """Maps fn(shared, batch) -> results, each with a leading axis of examples, over local devices.

    The mapped function takes batches of any size b >= 1: it fills up the last device's share with
    copies of the last example and drops their results. Results are NumPy arrays, those of fn on the
    whole batch up to rounding, provided that fn treats every example on its own; one that draws
    noise needs a key per example in `batch`. Compiles once for each number of examples per device.
    Raises: ValueError when called for arrays of different numbers of examples, or none.
    """
    mapped = jax.pmap(fn, axis_name=AXIS, in_axes=(None, 0), devices=jax.local_devices())

    @functools.wraps(fn)
    def call(shared: PyTree, batch: PyTree) -> PyTree:
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"a batch needs one number of examples >= 1 in all its arrays; got {sorted(sizes)}."
            )
        (size,) = sizes
        num_devices = jax.local_device_count()
        share = -(-size // num_devices)
        rows = np.minimum(np.arange(num_devices * share), size - 1).reshape(num_devices, share)
        results = mapped(shared, jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch))
        return jax.tree.map(
            lambda leaf: jax.device_get(leaf).reshape(-1, *leaf.shape[2:])[:size], results
        )

    return call


def _sharding() -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec(AXIS))
