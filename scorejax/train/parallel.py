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
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scorejax.train.step import TrainStep
from scorejax.typing import Batch, PyTree

AXIS = "devices"


def require_divisible(batch_size: int, *, accumulation: int = 1) -> None:
    """Raises ValueError unless the batch divides evenly over all shards of all devices."""
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

    def copies(leaf: Any) -> jax.Array:
        # A copy for each, the first too: a device of the host may use the array's own memory, and
        # what is donated later must not share it with the caller's.
        shards = [jax.device_put(np.array(leaf)[None], device) for device in jax.local_devices()]
        shape = (len(shards), *np.shape(leaf))
        return jax.make_array_from_single_device_arrays(shape, _sharding(), shards)

    return jax.tree.map(copies, tree)


def unreplicate(tree: PyTree) -> PyTree:
    """The first device's copy of a replicated tree, as NumPy arrays of their own."""
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0))[0], tree)


def shard(batches: Sequence[Batch]) -> Batch:
    """Lays out this process's batches, one a step, as (local device, step, example, ...)."""
    num_devices = jax.local_device_count()

    def split(*leaves: Any) -> jax.Array:
        parts = [np.reshape(leaf, (num_devices, -1, *np.shape(leaf)[1:])) for leaf in leaves]
        return jax.device_put(np.stack(parts, axis=1), _sharding())

    return jax.tree.map(split, *batches)


def require_spreadable(carry: PyTree) -> None:
    """Raises ValueError unless the rows of an online source's carry divide over all devices.

    `carry` has the rows of all devices, as arrays or `jax.ShapeDtypeStruct`.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(carry)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "carry"
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name} of the source is a random key; draw from `rng` instead.")
        if leaf.ndim and leaf.shape[0] % jax.device_count():
            num_rows, num_devices = leaf.shape[0], jax.device_count()
            raise ValueError(
                f"the source has {num_rows} rows ({name}), which do not divide over {num_devices} "
                f"devices; use a number of devices that divides {num_rows}."
            )


def spread(carry: PyTree) -> PyTree:
    """Lays out a carry with the rows of all devices: this process's arrays, split by device.

    Scalars are copied to every device. Raises: ValueError as `require_spreadable`.
    """
    require_spreadable(carry)
    num_local, first = jax.local_device_count(), jax.process_index() * jax.local_device_count()

    def split(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        if not leaf.ndim:
            return replicate(leaf)
        shares = leaf.reshape(jax.device_count(), -1, *leaf.shape[1:])
        # A copy, as in `replicate`: the carry is donated.
        return jax.device_put(np.array(shares[first : first + num_local]), _sharding())

    return jax.tree.map(split, carry)


def gather(carry: PyTree) -> PyTree:
    """The carry with the rows of all devices and processes, as NumPy arrays: undoes `spread`."""

    def join(leaf: jax.Array) -> np.ndarray:
        if leaf.ndim == 1:
            return np.array(leaf.addressable_data(0))[0]
        shares = np.array(jax.device_get(leaf))
        if jax.process_count() > 1:
            shares = multihost_utils.process_allgather(shares)
        return np.reshape(shares, (-1, *leaf.shape[2:]))

    return jax.tree.map(join, carry)


def map_step(step: TrainStep, *, num_frozen: int = 0) -> TrainStep:
    """Maps a step, made with axis_name=AXIS, over the devices of all processes.

    The mapped step takes a replicated state, which it donates (its memory is used again and the
    array that was passed is gone), a sharded batch, one key for all and `num_frozen` replicated
    trees, which it keeps; it returns metrics that are equal on all devices, once.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(0, 0, None, *[0] * num_frozen),
        out_axes=(0, None),
        donate_argnums=0,
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
        """Adds a call; waits for and returns those beyond the limit, metrics as NumPy arrays."""
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
