# SPDX-License-Identifier: Apache-2.0
"""Divergences, data in their domains, and brute force in double precision."""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from scorejax.bregman import divergences
from scorejax.bregman.divergences import SIDES, Divergence
from scorejax.bregman.index import brepartition

MATRIX = np.eye(14) + 0.3
DIVERGENCES = {
    "squared_euclidean": divergences.squared_euclidean(),
    "mahalanobis": divergences.mahalanobis(matrix=MATRIX),
    "itakura_saito": divergences.itakura_saito(),
    "exponential": divergences.exponential(),
    "generalized_kl": divergences.generalized_kl(),
    "simplex_kl": divergences.simplex_kl(smoothing=1e-3),
    "logistic": divergences.logistic(),
    "beta_1.5": divergences.beta(b=1.5),
    "beta_-0.5": divergences.beta(b=-0.5),
}
CASES = [(name, side) for name in DIVERGENCES for side in SIDES]


class Case(NamedTuple):
    divergence: Divergence
    side: str
    points: np.ndarray
    queries: np.ndarray


def make_case(
    name: str,
    side: str,
    *,
    num_points: int = 300,
    num_queries: int = 4,
    dim: int = 14,
    seed: int = 0,
) -> Case:
    """Correlated data in the domain, with twenty points twice and one constant column."""
    rng = np.random.default_rng(seed)
    num = num_points + num_queries
    z = rng.normal(size=(num, 3)) @ rng.normal(size=(3, dim)) + 0.3 * rng.normal(size=(num, dim))
    z[:, -1] = 0.25
    if name == "logistic":
        x = 1 / (1 + np.exp(-z))
    elif name in ("squared_euclidean", "mahalanobis", "exponential"):
        x = z / 2
    else:
        x = np.exp(z / 2)
    is_simplex = name == "simplex_kl"
    x = x / x.sum(axis=1, keepdims=True) if is_simplex else x.astype(np.float32)
    points = x[:num_points]
    points[20:40] = points[:20]
    return Case(DIVERGENCES[name], side, points, x[num_points:])


def all_distances(case: Case) -> np.ndarray:
    """Every divergence (q, n), with nothing shared with an index but the divergence itself."""
    x, y = case.points.astype(np.float64), case.queries.astype(np.float64)
    first = case.side == "data_first"
    pair = lambda q: (x, q) if first else (q, x)
    return np.stack([case.divergence.divergence(*pair(q[None])) for q in y])


def brute_force(case: Case, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances (q, k) of the nearest points, ties by id."""
    distances = all_distances(case)
    ids = np.stack([np.lexsort((np.arange(len(own)), own))[:k] for own in distances])
    return ids, np.take_along_axis(distances, ids, axis=1)


def assert_exact(found, case: Case, k: int) -> None:
    _, distances = brute_force(case, k)
    # One formula on both sides, in other orders of summation: 1e-13 of a divergence, and for
    # whitened coordinates of two points at one place 1e-15 of their squares.
    np.testing.assert_allclose(found.distances, distances, rtol=1e-9, atol=1e-13)
    # Equal distances may be told apart by rounding; any of the ids is then right.
    own = all_distances(case)
    np.testing.assert_allclose(
        np.take_along_axis(own, found.ids, axis=1), distances, rtol=1e-9, atol=1e-13
    )
    assert all(len(set(row)) == k for row in found.ids.tolist())


def build_on_disk(path, name="itakura_saito", side="data_first", **options):
    """A case and its index, in a folder unless the path is None."""
    case = make_case(name, side)
    options = {"num_parts": 3, "leaf_size": 16, "side": side, "page_bytes": 700, **options}
    return case, brepartition.build_index(case.points, case.divergence, path=path, **options)


def contents(folder: pathlib.Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}
