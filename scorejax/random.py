# SPDX-License-Identifier: Apache-2.0
"""Random draws from one key, or from a key for each row.

A row that is drawn from its own key does not depend on the other rows, nor on how the rows are
divided among devices. The functions here take both: one key, or keys (b,).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from scorejax.typing import Batch, Shape

Rng = PRNGKeyArray | Key[Array, "b"]
"""One key for all rows, or one for each."""


def row_keys(rng: PRNGKeyArray, num: int, first: int | Array = 0) -> Key[Array, "b"]:
    """Keys of the rows first .. first + num - 1, whatever the number of rows."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, first + jnp.arange(num))


def example_keys(rng: PRNGKeyArray, batch: Batch) -> Key[Array, "b"]:
    """The keys batch["rng"] that the training step gives to examples; without them, from `rng`."""
    return batch["rng"] if "rng" in batch else row_keys(rng, len(jax.tree.leaves(batch)[0]))


def split(rng: Rng, num: int = 2) -> Key[Array, "k"] | Key[Array, "k b"]:
    """Each key into `num` new ones; the leading axis tells them apart."""
    if _one(rng):
        return jax.random.split(rng, num)
    return jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(rng)


def fold_in(rng: Rng, data: int) -> Rng:
    """Each key with a number folded in."""
    fold = jax.random.fold_in if _one(rng) else jax.vmap(jax.random.fold_in, (0, None))
    return fold(rng, data)


def draw_rows(sampler: Callable[[PRNGKeyArray, Shape], Array], rng: Rng, shape: Shape) -> Array:
    """sampler(rng, shape), or from its own key each of the shape[0] rows."""
    if _one(rng):
        return sampler(rng, shape)
    return jax.vmap(lambda key: sampler(key, shape[1:]))(rng)


def _one(rng: Rng) -> bool:
    # Keys of the old kind, uint32 (2,), are always one.
    return not jax.dtypes.issubdtype(rng.dtype, jax.dtypes.prng_key) or rng.ndim == 0
