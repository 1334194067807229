# SPDX-License-Identifier: Apache-2.0
"""Computes many rows on all devices of all processes, one chunk at a time.

Every process calls the functions here with the same arguments, computes its share of each chunk and
gets all results. A row is a function of its own inputs and key, so that results do not depend on
the size of the chunks nor on the number of devices or processes, up to rounding.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from scorejax.data.images import Streamed, read_chunks
from scorejax.evaluate.parts import Arrays, Parts
from scorejax.random import row_keys
from scorejax.train import parallel
from scorejax.typing import Array, PRNGKeyArray, PyTree

Rows = dict[str, Array | Streamed]
"""Arrays by name, all with a leading axis that counts the rows, or images on disk."""


def make_stream(
    fn: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
) -> Callable[..., Iterator[Arrays]]:
    """Returns stream(variables, rows, batch_size, unit="", parts=None), compiled once for one size.

    It yields fn(variables, rows) for `batch_size` rows at a time, in order. `fn` maps rows to
    results and treats each row on its own. Images that are on disk are read while the devices
    compute the chunk before. `unit` names a row in the progress bar on stderr; without it there is
    none. With `parts`, each chunk is saved as soon as it is computed, and a chunk that is on disk
    is loaded.
    """
    mapped = parallel.map_local_rows(fn)

    def stream(
        variables: PyTree, rows: Rows, batch_size: int, unit: str = "", parts: Parts | None = None
    ) -> Iterator[Arrays]:
        num = len(next(iter(rows.values())))
        batch_size, variables = min(batch_size, num), parallel.share(variables)
        # The last chunk is filled up, since another size would be compiled anew.
        chunk = parallel.local_rows(batch_size)
        starts = {f"{start:08d}": start for start in range(0, num, batch_size)}
        # Decided once: a part that another call saves meanwhile must not shift the chunks to come.
        saved = {name for name in starts if parts and parts.has(name)}
        missing = [start for name, start in starts.items() if name not in saved]
        indices = [np.minimum(start + chunk, num - 1) for start in missing]
        local = zip(*(read_chunks(row, indices) for row in rows.values()), strict=True)
        silent = None if unit and jax.process_index() == 0 else True
        with tqdm.tqdm(total=num, unit=f" {unit}", file=sys.stderr, disable=silent) as bar:
            for name, start in starts.items():
                if name in saved:
                    results = parts.load(name)
                else:
                    ours = dict(zip(rows, next(local), strict=True))
                    results = mapped(variables, ours, batch_size)
                    if parts:
                        parts.save(name, results)
                yield jax.tree.map(lambda result, end=num - start: result[:end], results)
                bar.update(min(batch_size, num - start))

    return stream


def examples_at_once(batch_size: int, accumulation: int) -> int:
    """Examples that fit on all devices together, since training computes as many at a time."""
    return max(batch_size // accumulation, 1)


def joined(chunks: Iterable[Arrays]) -> Arrays:
    """The rows of all chunks."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)


def in_chunks(
    fn: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
    variables: PyTree,
    rows: Rows,
    batch_size: int,
    unit: str = "",
    parts: Parts | None = None,
) -> Arrays:
    """fn(variables, rows) of all rows, `batch_size` at a time; see `make_stream`."""
    return joined(make_stream(fn)(variables, rows, batch_size, unit, parts))


def draw_in_chunks(
    rng: PRNGKeyArray,
    draw: Callable[..., dict[str, Array]],
    variables: PyTree,
    num: int,
    *,
    arguments: tuple[Any, ...] = (),
    batch_size: int = 256,
    unit: str = "samples",
) -> Arrays:
    """`num` samples of draw(variables, keys (b,), *arguments), each from a key of its own.

    Sample i depends on `rng` and i, not on `num`, unless the sampler couples the rows of a batch
    (the corrector batch_langevin).
    """

    def draw_rows(variables: PyTree, rows: dict[str, Array]) -> dict[str, Array]:
        return draw(variables[0], rows["rng"], *variables[1:])

    rows = {"rng": row_keys(rng, num)}
    return in_chunks(draw_rows, (variables, *arguments), rows, batch_size, unit)


def measure_in_chunks(
    rng: PRNGKeyArray,
    measure: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
    variables: PyTree,
    x: Array,
    *,
    field: str = "image",
    batch_size: int = 128,
    parts: Parts | None = None,
) -> Arrays:
    """measure(variables, {field: x, "rng"}) of images or vectors, each with a key of its own.

    Serves likelihoods and completions. Example i gets a key that depends on `rng` and i alone.
    """
    rows = {field: x, "rng": row_keys(rng, len(x))}
    return in_chunks(measure, variables, rows, batch_size, "examples", parts)
