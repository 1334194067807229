# SPDX-License-Identifier: Apache-2.0
"""Training batches from data in memory or on disk, as `OfflineSource`s.

Each epoch is shuffled anew. Each process takes its share of every batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from scorejax.data.images import Images
from scorejax.data.transforms import Transform
from scorejax.typing import Batch, OfflineSource


class _Carry(NamedTuple):
    step: int
    seed: tuple[int, ...]
    batches: Iterator[dict[str, np.ndarray]]


Batches = Callable[[tuple[int, ...], int], Iterator[dict[str, np.ndarray]]]
"""(seed, start_step) -> this process's share of each batch from that step on."""


def memory_source(images: Images, batch_size: int, transform: Transform) -> OfflineSource:
    """Batches {"image", "label"} gathered from memory, images transformed.

    `batch_size` counts the examples of all processes; the last batch of an epoch is filled up with
    the first examples of the next.
    """
    return _transformed(_gathered(images._asdict(), batch_size), transform, len(images.label))


def array_source(arrays: dict[str, np.ndarray], batch_size: int) -> OfflineSource:
    """Batches of rows of several arrays (n, ...), gathered from memory and not transformed.

    `batch_size` counts the rows of all processes.
    Raises: ValueError unless the arrays have one number of rows.
    """
    if len({len(array) for array in arrays.values()}) != 1:
        sizes = ", ".join(f"{name} has {len(array)}" for name, array in arrays.items())
        raise ValueError(f"arrays need one number of rows: {sizes}")
    batches = _gathered(arrays, batch_size)

    def next_batch(carry: _Carry, state: Any, rng: PRNGKeyArray) -> tuple[_Carry, Batch]:
        del state, rng  # The key of `init` and the step decide everything.
        return carry._replace(step=carry.step + 1), next(carry.batches)

    num_rows = len(next(iter(arrays.values())))
    return OfflineSource(_init_of(batches), next_batch, num_rows)


def _gathered(arrays: dict[str, np.ndarray], batch_size: int) -> Batches:
    num_rows = len(next(iter(arrays.values())))

    def batches(seed: tuple[int, ...], start_step: int) -> Iterator[dict[str, np.ndarray]]:
        for local in shuffled_rows(num_rows, batch_size, seed, start_step):
            yield {name: array[local] for name, array in arrays.items()}

    return batches


def record_source(
    records: Sequence[dict[str, np.ndarray]],
    batch_size: int,
    transform: Transform,
    *,
    num_threads: int = 8,
) -> OfflineSource:
    """Batches read example by example in background threads, for sets too large for memory."""

    def batches(seed: tuple[int, ...], start_step: int) -> Iterator[dict[str, np.ndarray]]:
        import grain  # A second that sets in memory need not pay.

        index, count = jax.process_index(), jax.process_count()
        # grain seeds are 32-bit; SeedSequence mixes all of ours into one.
        mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        # Without a number it has the largest length, which batches of one example exceed.
        shuffled = grain.MapDataset.source(records).seed(mixed).shuffle().repeat(2**31)
        local = shuffled.slice(slice(index, None, count)).batch(_share(batch_size, count))
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        yield from local.slice(slice(start_step, None)).to_iter_dataset(options)

    return _transformed(batches, transform, len(records))


def padded_batches(images: Images, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in order; the last batch is padded and "mask" (b,) is False there."""
    return padded_rows(images._asdict(), batch_size)


def padded_rows(arrays: dict[str, np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All rows of arrays (n, ...) once, in order; "mask" (b,) is False where a batch is padded."""
    num_rows = len(next(iter(arrays.values())))
    for start in range(0, num_rows, batch_size):
        rows = np.arange(start, start + batch_size)
        mask = rows < num_rows
        rows = np.where(mask, rows, start)
        yield {name: array[rows] for name, array in arrays.items()} | {"mask": mask}


def _init_of(batches: Batches) -> Callable[[int, PRNGKeyArray], _Carry]:
    def init(start_step: int, rng: PRNGKeyArray) -> _Carry:
        seed = tuple(int(word) for word in np.asarray(jax.random.key_data(rng)).ravel())
        return _Carry(start_step, seed, batches(seed, start_step))

    return init


def _transformed(batches: Batches, transform: Transform, num_examples: int) -> OfflineSource:

    def next_batch(carry: _Carry, state: Any, rng: PRNGKeyArray) -> tuple[_Carry, Batch]:
        del state, rng  # The key of `init` and the step decide everything.
        raw = next(carry.batches)
        # The permutation of an epoch is drawn from (*seed, 0, epoch), so 1 starts another stream.
        generator = np.random.default_rng((*carry.seed, 1, carry.step, jax.process_index()))
        image = transform(generator, raw["image"])
        batch = {"image": image, "label": raw["label"].astype(np.int32)}
        return carry._replace(step=carry.step + 1), batch

    return OfflineSource(_init_of(batches), next_batch, num_examples)


def shuffled_rows(
    num_examples: int, batch_size: int, seed: tuple[int, ...], start_step: int
) -> Iterator[np.ndarray]:
    """Yields this process's rows of each batch from `start_step` on, without end.

    Each epoch is shuffled anew; a batch may reach into the next epoch.
    """
    index, count = jax.process_index(), jax.process_count()
    _share(batch_size, count)
    order, order_epoch = np.empty(0, np.int64), -1
    position = start_step * batch_size
    while True:
        rows = []
        while len(rows) < batch_size:
            epoch, offset = divmod(position, num_examples)
            if epoch != order_epoch:
                generator = np.random.default_rng((*seed, 0, epoch))
                order, order_epoch = generator.permutation(num_examples), epoch
            taken = order[offset : offset + batch_size - len(rows)]
            rows.extend(taken)
            position += len(taken)
        yield np.asarray(rows)[index::count]


def _share(batch_size: int, num_processes: int) -> int:
    if batch_size % num_processes:
        raise ValueError(
            f"batch_size needs to be a multiple of the {num_processes} processes; got {batch_size}"
        )
    return batch_size // num_processes
