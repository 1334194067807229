# SPDX-License-Identifier: Apache-2.0
"""Bregman neighbours with the face of scikit-learn's NearestNeighbors, for its pipelines."""

from typing import Literal

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from scorejax.bregman.divergences import Divergence
from scorejax.bregman.scan import exact


class BregmanNeighbors(TransformerMixin, BaseEstimator):
    """Exact nearest neighbours by D(training row, query), or the other order, in memory.

    Distances are divergences: for "squared_euclidean" no root is taken. As a step of a pipeline it
    hands on the sparse matrix of distances that estimators with metric="precomputed" take.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        divergence: str | Divergence = "squared_euclidean",
        *,
        side: str = "data_first",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.divergence = divergence
        self.side = side

    def fit(self, X: Float[ArrayLike, "n d"], y: object = None) -> "BregmanNeighbors":
        """Builds the index of the rows of X. Raises: ValueError outside the divergence's domain."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        self.index_ = exact.build_index(X, self.divergence, side=self.side)
        return self

    def kneighbors(
        self,
        X: Float[ArrayLike, "q d"] | None = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]] | Int[np.ndarray, "q k"]:
        """Distances and row numbers of the nearest; without X, of the training rows to others.

        Raises: ValueError before `fit`, unless 1 <= k <= n (k < n without X), and for rows with
        another number of columns or outside the divergence's domain.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if X is None:
            distances, ids = self._among_others(k)
        else:
            X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
            found = exact.search(self.index_, X, k)
            distances, ids = found.distances, found.ids
        return (distances, ids) if return_distance else ids

    def kneighbors_graph(
        self,
        X: Float[ArrayLike, "q d"] | None = None,
        n_neighbors: int | None = None,
        mode: Literal["connectivity", "distance"] = "connectivity",
    ) -> csr_array:
        """Sparse (q, n) matrix of ones, or of distances, at the nearest of each row of X.

        Raises: ValueError for another mode, and as `kneighbors`.
        """
        if mode not in ("connectivity", "distance"):
            raise ValueError(f"mode needs to be connectivity or distance; got {mode!r}.")
        distances, ids = self.kneighbors(X, n_neighbors)
        values = distances if mode == "distance" else np.ones_like(distances)
        rows = np.arange(0, ids.size + 1, ids.shape[1])
        shape = (len(ids), len(self.index_.points))
        return csr_array((values.ravel(), ids.ravel(), rows), shape=shape)

    def transform(self, X: Float[ArrayLike, "q d"]) -> csr_array:
        """The matrix of distances; a training row has itself among its nearest."""
        return self.kneighbors_graph(X, mode="distance")

    def _among_others(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of each training row without itself."""
        points = self.index_.points
        if not 1 <= k < len(points):
            raise ValueError(
                f"neighbours among the training rows need 1 <= k <= {len(points) - 1}; got {k}."
            )
        found = exact.search(self.index_, points, k + 1)
        # Behind k duplicates of lower number a row may not be among its own k + 1 nearest.
        itself = found.ids == np.arange(len(points))[:, None]
        itself[~itself.any(axis=1), -1] = True
        shape = (len(points), k)
        return found.distances[~itself].reshape(shape), found.ids[~itself].reshape(shape)
