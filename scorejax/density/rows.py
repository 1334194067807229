# SPDX-License-Identifier: Apache-2.0
"""Rows (n, d) to which densities are fitted: checked, and split for held-out likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

Rows = ArrayLike
"""Rows (n, d) of real numbers, as users have them."""


def checked_rows(x: Rows) -> Float[Array, "n d"]:
    """The rows as an array of JAX's floating type.

    Raises: ValueError unless they are a table of at least two rows of finite real numbers, of which
    not all are equal.
    """
    rows = np.asarray(x)
    if rows.ndim != 2 or len(rows) < 2 or not rows.shape[1]:
        raise ValueError(f"a density needs rows (n, d), n >= 2 and d >= 1; got shape {rows.shape}")
    if not np.isrealobj(rows) or not np.isfinite(rows).all():
        bad = int(np.sum(~np.isfinite(rows).all(axis=1))) if np.isrealobj(rows) else len(rows)
        raise ValueError(
            f"a density needs finite real numbers; {bad} of {len(rows)} rows have others"
        )
    if (rows == rows[:1]).all():
        raise ValueError(f"a density needs rows that vary; all {len(rows)} rows are equal")
    return jnp.asarray(rows, float)


def held_out_split(
    rng: PRNGKeyArray, x: Float[Array, "n d"], share: float
) -> tuple[Float[Array, "t d"], Float[Array, "v d"]]:
    """Divides the rows at random into those to fit and a share, at least one row, held out.

    Raises: ValueError unless share is in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"the held-out share of rows needs to lie in (0, 1); got {share}")
    num = min(max(1, round(share * len(x))), len(x) - 1)
    order = jax.random.permutation(rng, len(x))
    return x[order[num:]], x[order[:num]]
