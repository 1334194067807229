# SPDX-License-Identifier: Apache-2.0
"""Computes many rows on all local devices, one chunk at a time, with a progress bar."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm

from scorejax.evaluate.parts import Arrays, Parts
from scorejax.random import row_keys
from scorejax.train import parallel
from scorejax.typing import Array, PRNGKeyArray, PyTree


def in_chunks(
    fn: Callable[[PyTree, dict[str, Array]], dict[str, Array]],
    variables: PyTree,
    rows: dict[str, Array],
    batch_size: int,
    unit: str,
    parts: Parts | None = None,
) -> Arrays:
    """fn(variables, rows) on all local devices, `batch_size` rows at a time.

    `fn` maps rows to results and treats each row on its own; the leading axis counts the rows.
    `unit` names a row in the progress bar on stderr. With `parts`, each chunk is saved as soon as
    it is computed, and a chunk that is on disk is loaded.
    """
    mapped = parallel.map_over_devices(fn)
    num = len(next(iter(rows.values())))
    batch_size = min(batch_size, num)
    results = []
    with tqdm.tqdm(total=num, unit=f" {unit}", file=sys.stderr, disable=None) as bar:
        for start in range(0, num, batch_size):
            # The last chunk is filled up, since another size would be compiled anew.
            index = np.minimum(np.arange(start, start + batch_size), num - 1)
            chunk = {name: row[index] for name, row in rows.items()}
            compute = functools.partial(mapped, variables, chunk)
            results.append(parts.get(f"{start:08d}", compute) if parts else compute())
            bar.update(min(batch_size, num - start))
    return jax.tree.map(lambda *chunks: np.concatenate(chunks)[:num], *results)


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
