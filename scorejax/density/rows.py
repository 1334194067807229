# SPDX-License-Identifier: Apache-2.0
"""Rows (n, d) to which densities are fitted, and their labels: checked, and split."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

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


def checked_labels(
    labels: ArrayLike, num_rows: int, num_classes: int | None = None
) -> tuple[Int[np.ndarray, "n"], int]:
    """The labels of rows, and the number of classes: by default the largest label plus one.

    Raises: ValueError unless each row has an integer 0 .. num_classes - 1, and each class a row.
    """
    labels = np.asarray(labels)
    if labels.shape != (num_rows,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{num_rows} rows need as many integer labels; got {labels.dtype} {labels.shape}"
        )
    num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels need to lie in 0 .. {max(num_classes, 1) - 1}; got {labels.min()} .. "
            f"{labels.max()}"
        )
    remedy = ". Number the classes 0, 1, ... without gaps"
    require_all_classes(labels, num_classes, "training rows", remedy)
    return labels, num_classes


def require_all_classes(
    labels: Int[np.ndarray, "n"], num_classes: int, rows: str, remedy: str = ""
) -> None:
    """Raises: ValueError naming the first class that has no label among these rows."""
    missing = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if len(missing):
        raise ValueError(
            f"each class needs {rows}; class {missing[0]} of {num_classes} has none{remedy}"
        )


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
