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


def share(tree: PyTree) -> PyTree:
    """Copies a tree to every local device, as arrays of unchanged shape.

    A mapped function that takes them as its shared argument moves them no more.
    """
    return jax.device_put(tree, NamedSharding(_local_mesh(), PartitionSpec()))


def map_copies(fn: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """Maps fn over the copies of a replicated tree; its result is laid out as by `share`.

    Nothing moves between devices or to the host, and what fn does not use is not copied.
    """
    return jax.pmap(fn, axis_name=AXIS, out_axes=None, devices=jax.local_devices())


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
        return _all_rows(leaf)

    return jax.tree.map(join, carry)


def _all_rows(leaf: jax.Array) -> np.ndarray:
    """The rows of a mapped array (local device, row, ...), those of all processes in order."""
    shares = np.array(jax.device_get(leaf))
    if jax.process_count() > 1:
        shares = multihost_utils.process_allgather(shares)
    return np.reshape(shares, (-1, *leaf.shape[2:]))


def first_answer(answer: bool) -> bool:
    """The answer of the first process, in all of them; each needs to ask."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def by_first(fn: Callable[[], int | None]) -> int:
    """Calls fn in the first process alone, while all wait; returns its answer, 0 for None, to all.

    Raises: in the first process what fn raises; RuntimeError in the others, which would else wait
    for it in their next collective.
    """
    if jax.process_count() == 1:
        return fn() or 0
    answer, error = 0, None
    if jax.process_index() == 0:
        try:
            answer = fn() or 0
        except Exception as raised:
            error = raised
    failed, answer = multihost_utils.broadcast_one_to_all(np.array([error is not None, answer]))
    if error is not None:
        raise error
    if failed:
        raise RuntimeError("the first process failed; its own line says why.")
    return int(answer)


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


def local_rows(num: int) -> np.ndarray:
    """Which of `num` rows this process computes: indices (local device, share).

    All devices of all processes take equal shares, in order; beyond the last row it is repeated.
    """
    share, num_local = -(-num // jax.device_count()), jax.local_device_count()
    first = jax.process_index() * num_local * share
    rows = np.arange(first, first + num_local * share)
    return np.minimum(rows, num - 1).reshape(num_local, share)


def map_local_rows(fn: Callable[[PyTree, PyTree], PyTree]) -> Callable[..., PyTree]:
    """Maps fn as `map_over_devices` does; each process passes the rows that are its share.

    The mapped function takes (shared, batch, num): `batch` has the rows `local_rows(num)`, with the
    same two leading axes. All processes need to call it; it returns all `num` rows to each.
    """
    # JAX 0.10 gives every device all random keys of a batch if `shared` has no array: it gets one.
    mapped = jax.pmap(
        lambda shared, batch: fn(shared[0], batch),
        axis_name=AXIS,
        in_axes=(None, 0),
        devices=jax.local_devices(),
    )

    def call(shared: PyTree, batch: PyTree, num: int) -> PyTree:
        results = mapped((shared, np.zeros(())), batch)
        return jax.tree.map(lambda leaf: _all_rows(leaf)[:num], results)

    return call


def map_over_devices(fn: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """Maps fn(shared, batch) -> results, each with a leading axis of examples, over all devices.

    The mapped function takes batches of any size b >= 1: it fills up the last device's share with
    copies of the last example and drops their results. Results are NumPy arrays, those of fn on the
    whole batch up to rounding, provided that fn treats every example on its own; one that draws
    noise needs a key per example in `batch`. Compiles once for each number of examples per device.
    Several processes share the examples: all call it with the same arrays, and each gets all
    results.
    Raises: ValueError when called for arrays of different numbers of examples, or none.
    """
    mapped = map_local_rows(fn)

    @functools.wraps(fn)
    def call(shared: PyTree, batch: PyTree) -> PyTree:
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"a batch needs one number of examples >= 1 in all its arrays; got {sorted(sizes)}."
            )
        (size,) = sizes
        rows = local_rows(size)
        return mapped(shared, jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch), size)

    return call


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def _sharding() -> NamedSharding:
    return NamedSharding(_local_mesh(), PartitionSpec(AXIS))
