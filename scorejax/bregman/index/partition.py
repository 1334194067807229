# SPDX-License-Identifier: Apache-2.0
"""Cuts the coordinates into parts, and models the best number of parts.

PCCP puts correlated coordinates into different parts, so that the parts' candidates coincide and
their union is small. More parts tighten the bounds and cost more work each; with a mean bound of
A alpha^M for M parts, the optimal number has a closed form.
Source: arXiv:2006.00227.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Part = Int[np.ndarray, "_"]


def contiguous(num_columns: int, num_parts: int) -> list[Part]:
    """Coordinates in their order, cut into parts of nearly equal size."""
    check_num_parts(num_columns, num_parts)
    return np.array_split(np.arange(num_columns), num_parts)


def pccp(x: Float[np.ndarray, "n d"], num_parts: int, *, rng: np.random.Generator) -> list[Part]:
    """Pearson correlation coefficient-based partition of the columns.

    Groups of num_parts correlated columns are formed first: a random column, then repeatedly the
    one with the largest absolute correlation with any member. Each part takes one column of each
    group.
    """
    num_columns = x.shape[1]
    check_num_parts(num_columns, num_parts)
    groups = _correlated_groups(absolute_correlation(x), num_parts, rng)
    parts = [[] for _ in range(num_parts)]
    for group in groups:
        for part, column in zip(parts, group, strict=False):
            part.append(column)
    return [np.sort(np.array(part)) for part in parts]


@np.errstate(all="ignore")
def absolute_correlation(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
    """|Pearson r| of columns; zero for a column that is constant or overflows."""
    centred = x - x.mean(axis=0)
    centred = centred / np.abs(centred).max(axis=0)
    correlation = (centred.T @ centred) / np.outer(*[np.sqrt((centred**2).sum(axis=0))] * 2)
    return np.abs(np.where(np.isfinite(correlation), correlation, 0))


class BoundFit(NamedTuple):
    """A fit of the mean upper bound of M parts by scale * decay^M."""

    scale: float
    decay: float


def fit_bound(num_parts: Sequence[int], mean_bounds: Sequence[float]) -> BoundFit:
    """Fits by least squares in the logarithm; two numbers of parts suffice."""
    slope, intercept = np.polyfit(num_parts, np.log(mean_bounds), 1)
    return BoundFit(float(np.exp(intercept)), float(np.exp(slope)))


def search_cost(
    num_parts: int, share: float, *, num_points: int, num_columns: int, k: int
) -> float:
    """Cost of a query in operations: T(M) = d + M n + n log k + share n (d + log k)."""
    bounds = num_columns + num_points * (num_parts + math.log(k))
    return bounds + share * num_points * (num_columns + math.log(k))


def optimal_num_parts(
    fit: BoundFit, share_per_bound: float, *, num_points: int, num_columns: int, k: int
) -> int | None:
    """The M in [1, d] of least cost, if the share of candidates is share_per_bound A alpha^M.

    None where the model has no optimum, since bounds do not fall or nothing was measured.
    """
    scale, decay = fit
    pull = share_per_bound * scale * (num_columns + math.log(k))
    if not (0 < decay < 1 and 0 < pull < math.inf):
        return None
    # dT/dM = n + n pull decay^M ln(decay) = 0.
    best = math.log(-1 / (pull * math.log(decay)), decay)
    cost = lambda m: search_cost(
        m, share_per_bound * scale * decay**m, num_points=num_points, num_columns=num_columns, k=k
    )
    floor = min(max(math.floor(best), 1), num_columns)
    return min(floor, min(floor + 1, num_columns), key=cost)


def _correlated_groups(correlation: np.ndarray, size: int, rng: np.random.Generator) -> list:
    free = np.ones(len(correlation), bool)
    groups = []
    while free.any():
        seed = int(rng.choice(np.flatnonzero(free)))
        group, nearness = [seed], correlation[seed].copy()
        free[seed] = False
        while len(group) < size and free.any():
            column = int(np.argmax(np.where(free, nearness, -1)))
            group.append(column)
            free[column] = False
            nearness = np.maximum(nearness, correlation[column])
        groups.append(group)
    return groups


def check_num_parts(num_columns: int, num_parts: int) -> None:
    """Raises ValueError unless 1 <= num_parts <= num_columns."""
    if not 1 <= num_parts <= num_columns:
        raise ValueError(f"num_parts needs to be in [1, {num_columns}]; got {num_parts}.")
