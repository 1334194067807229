# SPDX-License-Identifier: Apache-2.0
"""Corrections of many p-values. Adjusted p-values are compared with the level of the family."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Real
from scipy import stats

from scorejax.choices import require
from scorejax.density.hypothesis.arguments import p_value_array, require_level


def benjamini_hochberg(p_values: Real[ArrayLike, "n"]) -> Float[np.ndarray, "n"]:
    """Adjusted p-values whose comparison with q bounds the false discovery rate by q.

    The bound holds for independent p-values, and for conformal ones that share a calibration set,
    since these are positively dependent.
    Raises: ValueError unless all lie in [0, 1].
    Source: Bates et al. 2021, arXiv:2104.08279.
    """
    return stats.false_discovery_control(p_value_array(p_values), method="bh")


def holm(p_values: Real[ArrayLike, "n"]) -> Float[np.ndarray, "n"]:
    """Adjusted p-values; P(any true hypothesis has one <= a) <= a under any dependence.

    Raises: ValueError unless all lie in [0, 1].
    """
    p = p_value_array(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order])
    return np.minimum(adjusted, 1.0)


def fixed_sequence(
    p_values: Real[ArrayLike, "n"], alpha: float, *, num_starts: int = 1
) -> Bool[np.ndarray, "n"]:
    """Rejects hypotheses in the given order, each run until its first p-value above the level.

    P(any true hypothesis is rejected) <= alpha if the order was fixed without the data. Several
    starts, evenly spaced, share alpha evenly; they help where the first hypotheses have no power.
    Raises: ValueError unless all p-values lie in [0, 1], alpha in (0, 1) and num_starts in 1 .. n.
    Source: Angelopoulos et al. 2021, arXiv:2110.01052, fixed sequence testing.
    """
    p = p_value_array(p_values)
    require_level(alpha=alpha)
    in_range = lambda value: 1 <= value <= len(p)
    require({"num_starts": num_starts}, ("num_starts",), in_range, f"to lie in 1 .. {len(p)}")
    rejected = np.zeros(len(p), bool)
    for start in np.arange(num_starts) * len(p) // num_starts:
        rejected[start:] |= np.logical_and.accumulate(p[start:] <= alpha / num_starts)
    return rejected
