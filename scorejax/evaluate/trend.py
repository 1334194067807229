# SPDX-License-Identifier: Apache-2.0
"""A test of whether a quantity recorded along independent chains goes on changing."""

import dataclasses

import numpy as np
import scipy.stats
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Trend:
    """Mean slope over chains, in units of the quantity per factor of ten in steps.

    `low` and `high` are the ends of its 95 % confidence interval: a chain is flat if both are
    small, which a p-value that is not small does not show.
    """

    slope: float
    low: float
    high: float
    p_value: float


def trend(steps: Int[np.ndarray, "r"], values: Float[np.ndarray, "r b"]) -> Trend:
    """Tests by Student's t whether the slope over log10(steps) of chains is zero on average.

    Each of the b independent chains, or groups of chains, counts as one observation, its own
    least-squares slope; correlation within a chain is therefore of no consequence. A false alarm
    at p < a has the probability a if slopes are Gaussian, and about a for ten chains or more.
    Chains far from equilibrium have a trend: leave out the records before.

    Raises: ValueError unless there are 2 records and 3 chains at least, all finite.
    """
    steps, values = np.asarray(steps), np.asarray(values, np.float64)
    if values.shape[0] < 2 or values.shape[1] < 3:
        raise ValueError(
            f"a trend needs at least 2 records of 3 chains; got {values.shape[0]} of "
            f"{values.shape[1]}."
        )
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))[0]
        raise ValueError(f"a trend needs finite values; a chain is not finite at {steps[bad]}.")
    logs = np.log10(steps) - np.log10(steps).mean()
    slopes = logs @ values / (logs @ logs)
    if not slopes.any():  # chains that stand still
        return Trend(0.0, 0.0, 0.0, 1.0)
    test = scipy.stats.ttest_1samp(slopes, 0.0)
    low, high = test.confidence_interval(0.95)
    return Trend(float(slopes.mean()), float(low), float(high), float(test.pvalue))
