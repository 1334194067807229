# SPDX-License-Identifier: Apache-2.0
"""Kernel distance (KID): maximum mean discrepancy of features under a cubic kernel.

Unlike that of the Fréchet distance, the estimate is unbiased for any number of samples.
Source: Bińkowski et al. 2018, arXiv:1801.01401, Section 4 (KID) and Eq. 4.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float


class KernelDistance(NamedTuple):
    """Mean over subsets, and its standard error."""

    mean: float
    standard_error: float


def squared_mmd(first: Float[ArrayLike, "n d"], second: Float[ArrayLike, "m d"]) -> float:
    """Unbiased estimate of the squared MMD under the kernel (x . y / d + 1)^3; may be negative.

    Raises: ValueError unless both have at least two rows and the same number of columns.
    """
    x, y = (np.asarray(features, np.float64) for features in (first, second))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            "squared_mmd needs features (n, d) and (m, d) with at least two rows each; got "
            f"{x.shape} and {y.shape}"
        )
    within = (_mean_off_diagonal(_kernel(z, z)) for z in (x, y))
    return float(sum(within) - 2 * _kernel(x, y).mean())


def kernel_distance(
    first: Float[ArrayLike, "n d"],
    second: Float[ArrayLike, "m d"],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Mean squared MMD of `num_subsets` pairs of random subsets, drawn without replacement.

    `subset_size` is reduced to the size of the smaller set. Memory grows with subset_size^2.
    """
    rng = np.random.default_rng(seed)
    x, y = np.asarray(first), np.asarray(second)
    size = min(subset_size, len(x), len(y))
    pick = lambda features: features[rng.choice(len(features), size, replace=False)]
    estimates = [squared_mmd(pick(x), pick(y)) for _ in range(num_subsets)]
    error = np.std(estimates, ddof=1) / math.sqrt(num_subsets) if num_subsets > 1 else math.nan
    return KernelDistance(float(np.mean(estimates)), float(error))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(gram: np.ndarray) -> float:
    n = len(gram)
    return float((gram.sum() - np.trace(gram)) / (n * (n - 1)))
