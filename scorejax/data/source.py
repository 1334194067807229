# SPDX-License-Identifier: Apache-2.0
"""Where training batches come from.

A `BatchSource` is `init(start_step, rng) -> carry` and `next(carry, state, rng) -> (carry, batch)`.
Batch number s is a function of the key given to `init` and of s alone, so that a run resumed at
step s sees what the run never stopped would have seen. In a run of several processes each takes
its own share of every batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from scorejax.data.images import Images
from scorejax.data.transforms import Transform
from scorejax.typing import Batch, PyTree


class BatchSource(NamedTuple):
    """Draws batches: from data on disk or, given the training state, from an environment."""

    init: Callable[[int, PRNGKeyArray], PyTree]
    next: Callable[[PyTree, Any, PRNGKeyArray], tuple[PyTree, Batch]]


class _Carry(NamedTuple):
    step: int
    seed: tuple[int, ...]
    batches: Iterator[dict[str, np.ndarray]]


def memory_source(images: Images, batch_size: int, transform: Transform) -> BatchSource:
    """Batches gathered from memory, epoch after epoch, each in an order of its own.

    `batch_size` counts the examples of all processes; the last batch of an epoch is filled up with
    the first examples of the next.
    """

    def batches(seed: tuple[int, ...], start_step: int) -> Iterator[dict[str, np.ndarray]]:
        rows = shuffled_rows(len(images.label), batch_size, seed, start_step)
        for local in rows:
            yield {"image": images.image[local], "label": images.label[local]}

    return _transformed(batches, transform)


def record_source(
    records: Sequence[dict[str, np.ndarray]],
    batch_size: int,
    transform: Transform,
    *,
    num_threads: int = 8,
) -> BatchSource:
    """Batches read example by example in background threads, for sets too large for memory."""

    def batches(seed: tuple[int, ...], start_step: int) -> Iterator[dict[str, np.ndarray]]:
        import grain  # A second that sets in memory need not pay.

        index, count = jax.process_index(), jax.process_count()
        # grain seeds are 32-bit; SeedSequence mixes all of ours into one.
        mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        shuffled = grain.MapDataset.source(records).seed(mixed).shuffle().repeat()
        local = shuffled.slice(slice(index, None, count)).batch(_share(batch_size, count))
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads)
        yield from local.slice(slice(start_step, None)).to_iter_dataset(options)

    return _transformed(batches, transform)


def padded_batches(images: Images, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All images once, in order; the last batch is padded and "mask" (b,) is False there."""
    for start in range(0, len(images.label), batch_size):
        rows = np.arange(start, start + batch_size)
        mask = rows < len(images.label)
        rows = np.where(mask, rows, start)
        yield {"image": images.image[rows], "label": images.label[rows], "mask": mask}


def _transformed(
    batches: Callable[[tuple[int, ...], int], Iterator[dict[str, np.ndarray]]],
    transform: Transform,
) -> BatchSource:
    def init(start_step: int, rng: PRNGKeyArray) -> _Carry:
        seed = tuple(int(word) for word in np.asarray(jax.random.key_data(rng)).ravel())
        return _Carry(start_step, seed, batches(seed, start_step))

    def next_batch(carry: _Carry, state: Any, rng: PRNGKeyArray) -> tuple[_Carry, Batch]:
        del state, rng  # The key of `init` and the step decide everything.
        raw = next(carry.batches)
        # The permutation of an epoch is drawn from (*seed, 0, epoch), so 1 starts another stream.
        generator = np.random.default_rng((*carry.seed, 1, carry.step, jax.process_index()))
        image = transform(generator, raw["image"])
        batch = {"image": image, "label": raw["label"].astype(np.int32)}
        return carry._replace(step=carry.step + 1), batch

    return BatchSource(init, next_batch)


def shuffled_rows(
    num_examples: int, batch_size: int, seed: tuple[int, ...], start_step: int
) -> Iterator[np.ndarray]:
    """This process's rows of each batch from `start_step` on, without end.

    Epoch after epoch, each in an order of its own; a batch may reach into the next epoch.
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
