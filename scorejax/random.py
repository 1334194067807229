# SPDX-License-Identifier: Apache-2.0
"""Random draws from one key, or from a key for each row.

Never both split a key and fold numbers into it: split(key, n)[i] is fold_in(key, i), bit for bit.

A row that is drawn from its own key does not depend on the other rows, nor on how the rows are
divided among devices. The functions here take both: one key, or keys (b,).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from scorejax.typing import Batch, Shape

Rng = PRNGKeyArray | Key[Array, "b"]
"""One key for all rows, or keys (b,): one for each row."""


def row_keys(rng: PRNGKeyArray, num: int, first: int | Array = 0) -> Key[Array, "b"]:
    """Keys of the rows first .. first + num - 1; they do not depend on `num`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(num))


def keys_of_rows(rng: Rng, num: int) -> Key[Array, "b"]:
    """The given keys (b,) of rows, or `num` from the one key that is given."""
    return row_keys(rng, num) if _one(rng) else rng


def example_keys(rng: PRNGKeyArray, batch: Batch) -> Key[Array, "b"]:
    """The keys batch["rng"] that the training step gives to examples, or else keys from `rng`."""
    return batch["rng"] if "rng" in batch else row_keys(rng, len(jax.tree.leaves(batch)[0]))


def split(rng: Rng, num: int = 2) -> Key[Array, "k"] | Key[Array, "k b"]:
    """Splits each key into `num` new ones: keys (num,) from one key, (num, b) from keys (b,)."""
    if _one(rng):
        return jax.random.split(rng, num)
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(rng)


def fold_in(rng: Rng, data: int | Array) -> Rng:
    """Folds a number into each key."""
    fold = jax.random.fold_in if _one(rng) else jax.vmap(jax.random.fold_in, (0, None))
    return fold(rng, data)


def draw_rows(
    sampler: Callable[[PRNGKeyArray, Shape], Array], rng: Rng, shape: Shape, *, axis: int = 0
) -> Array:
    """Draws sampler(rng, shape) from one key, or each of the shape[0] rows from its own key.

    `axis` is where the rows are in what the sampler draws.
    Raises: ValueError if the number of keys is not shape[0].
    """
    if _one(rng):
        return sampler(rng, shape)
    if len(rng) != shape[0]:
        raise ValueError(f"{shape[0]} rows need one key, or {shape[0]} keys; got {len(rng)} keys.")
    return jax.vmap(lambda key: sampler(key, shape[1:]), out_axes=axis)(rng)


def normal(rng: Rng, shape: Shape, dtype: Any = float) -> Array:
    """Standard normal noise, each row from its own key if there are several."""
    return draw_rows(functools.partial(jax.random.normal, dtype=dtype), rng, shape)


def _one(rng: Rng) -> bool:
    # Keys of the old kind, uint32 (2,), are always one.
    return not jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.ndim == 0
