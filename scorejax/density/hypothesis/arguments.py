# SPDX-License-Identifier: Apache-2.0
"""Scores, p-values and levels as the tests accept them; anything else is refused in one line."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real, Shaped

from scorejax.choices import require


def require_level(**levels: float) -> None:
    """Raises ValueError for the first named level that is not inside (0, 1)."""
    require(levels, levels, lambda level: 0 < level < 1, "to lie inside (0, 1)")


def score_array(
    name: str, scores: Shaped[ArrayLike, "..."], *, least: int = 1
) -> Float[np.ndarray, "n"]:
    """Scores in double precision; infinite ones are allowed, since they have a rank.

    Raises: ValueError unless they are (n,), n >= `least`, and none is NaN.
    """
    array = np.asarray(scores, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} needs one number per row, (n,); got {array.shape}")
    if len(array) < least:
        raise ValueError(f"{name} needs at least {least} score(s); got {len(array)}")
    if np.isnan(array).any():
        raise ValueError(f"{name} needs numbers; row {np.isnan(array).argmax()} is NaN")
    return array


def require_lengths(**arrays: Shaped[np.ndarray, "..."]) -> None:
    """Raises ValueError unless the named arrays have one length."""
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ValueError(f"rows need to match; got {lengths}")


def require_booleans(failed: Shaped[np.ndarray, "n"]) -> None:
    """Raises ValueError for other types: ~1 is -2, and picks a row."""
    if failed.dtype != bool:
        raise ValueError(f"failed needs booleans, True for failures; got {failed.dtype}")


def p_value_array(
    p_values: Real[ArrayLike, "..."], *, zero_allowed: bool = True
) -> Float[np.ndarray, "n"]:
    """p-values in double precision. Raises: ValueError unless (n,) in [0, 1], or (0, 1]."""
    array = np.asarray(p_values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"p_values need to be one array (n,) for each test; got {array.shape}")
    valid = ((array >= 0) if zero_allowed else (array > 0)) & (array <= 1)  # NaN is not
    if not valid.all():
        row, ends = np.argmin(valid), "[0, 1]" if zero_allowed else "(0, 1]"
        raise ValueError(f"p_values need to lie in {ends}; row {row} is {array[row]}")
    return array
