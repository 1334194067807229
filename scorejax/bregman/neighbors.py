# SPDX-License-Identifier: Apache-2.0
"""Bregman neighbours as a scikit-learn estimator, with the methods of its NearestNeighbors."""

from typing import Literal

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from scorejax.bregman.divergences import Divergence, get
from scorejax.bregman.scan import exact, range_scan

MAX_DENSE_BYTES = 2**32
"""Largest array that is made of a sparse one."""


class BregmanNeighbors(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Exact nearest neighbours in memory by D(training row, query), or by the other order.

    Distances are divergences: "squared_euclidean" takes no root. `smoothing` is the option of
    divergences of positive numbers that permits zeros, see `divergences.named`. Sparse rows, of
    counts say, are made dense, up to `MAX_DENSE_BYTES`. In a pipeline, `transform` returns
    the sparse matrix of distances that estimators with metric="precomputed" take, with a column for
    each training row, whose names `get_feature_names_out` gives.
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        divergence: str | Divergence = "squared_euclidean",
        *,
        side: str = "data_first",
        smoothing: float = 0.0,
        radius: float = 1.0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.divergence = divergence
        self.side = side
        self.smoothing = smoothing
        self.radius = radius

    def fit(self, X: Float[ArrayLike, "n d"], y: object = None) -> "BregmanNeighbors":
        """Indexes the rows of X.

        Raises: ValueError for rows outside the divergence's domain, a sparse X that is too large,
        or a `smoothing` that the divergence does not have.
        """
        X = self._dense(X, reset=True)
        options = {"smoothing": self.smoothing} if self.smoothing else {}
        self.index_ = exact.build_index(X, get(self.divergence, **options), side=self.side)
        return self

    def kneighbors(
        self,
        X: Float[ArrayLike, "q d"] | None = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]] | Int[np.ndarray, "q k"]:
        """Distances and row numbers of the nearest training rows of each row of X.

        Without X, the training rows are the queries, and no row is its own neighbour.
        Raises: ValueError before `fit`, unless 1 <= k <= n (k < n without X), and for rows with
        another number of columns or outside the divergence's domain.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if X is None:
            distances, ids = self._among_others(k)
        else:
            X = self._dense(X)
            nearest = exact.search(self.index_, X, k)
            distances, ids = nearest.distances, nearest.ids
        return (distances, ids) if return_distance else ids

    def radius_neighbors(
        self,
        X: Float[ArrayLike, "q d"] | None = None,
        radius: float | None = None,
        return_distance: bool = True,
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """Distances and row numbers of all training rows within the radius of each row of X.

        Both are arrays (q,) of arrays, nearest first. Without X, the training rows are the queries,
        and no row is its own neighbour.
        Raises: ValueError unless radius >= 0, and as `kneighbors`.
        """
        check_is_fitted(self)
        queries = self.index_.points if X is None else self._dense(X)
        radius = self.radius if radius is None else radius
        found = range_scan.range_search(self.index_, queries, radius)
        distances, ids = np.empty((2, len(queries)), object)
        for query, (near, far) in enumerate(zip(found.ids, found.distances, strict=True)):
            others = near != query if X is None else slice(None)
            ids[query], distances[query] = near[others], far[others]
        return (distances, ids) if return_distance else ids

    def kneighbors_graph(
        self,
        X: Float[ArrayLike, "q d"] | None = None,
        n_neighbors: int | None = None,
        mode: Literal["connectivity", "distance"] = "connectivity",
    ) -> csr_array:
        """Sparse matrix (q, n) of ones, or of distances, at the nearest points of each row of X.

        Raises: ValueError for an unknown mode, and as `kneighbors`.
        """
        if mode not in ("connectivity", "distance"):
            raise ValueError(f"mode needs to be connectivity or distance; got {mode!r}.")
        distances, ids = self.kneighbors(X, n_neighbors)
        values = distances if mode == "distance" else np.ones_like(distances)
        rows = np.arange(0, ids.size + 1, ids.shape[1])
        shape = (len(ids), len(self.index_.points))
        return csr_array((values.ravel(), ids.ravel(), rows), shape=shape)

    def transform(self, X: Float[ArrayLike, "q d"]) -> csr_array:
        """Sparse matrix (q, n) of distances at n_neighbors + 1 training rows for each row of X.

        There is one more, as of scikit-learn's KNeighborsTransformer, since a training row is its
        own nearest neighbour, which estimators of a precomputed graph leave out.
        Raises: ValueError as `kneighbors`, which also needs n_neighbors < n.
        """
        check_is_fitted(self)
        return self.kneighbors_graph(X, self.n_neighbors + 1, mode="distance")

    @property
    def _n_features_out(self) -> int:
        """Number of columns of `transform`, for `get_feature_names_out`."""
        return len(self.index_.points)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _dense(self, X: object, *, reset: bool = False) -> Float[np.ndarray, "q d"]:
        """Checked rows as a dense array. Raises: ValueError if a sparse X would be too large."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], accept_sparse="csr", reset=reset)
        if not issparse(X):
            return X
        size = X.shape[0] * X.shape[1] * X.dtype.itemsize
        if size > MAX_DENSE_BYTES:
            raise ValueError(
                f"{type(self).__name__} computes with dense rows, {size / 2**30:.1f} GiB for this "
                f"sparse X of {X.shape}; at most {MAX_DENSE_BYTES / 2**30:g} GiB are made of one. "
                "Reduce its columns, or pass parts of its rows"
            )
        return X.toarray()

    def _among_others(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and row numbers of the k nearest other training rows of each training row."""
        points = self.index_.points
        if not 1 <= k < len(points):
            raise ValueError(
                f"neighbours among the training rows need 1 <= k <= {len(points) - 1}; got {k}."
            )
        nearest = exact.search(self.index_, points, k + 1)
        # With more than k duplicates of lower number, a row is not among its own k + 1 nearest.
        itself = nearest.ids == np.arange(len(points))[:, None]
        itself[~itself.any(axis=1), -1] = True
        shape = (len(points), k)
        return nearest.distances[~itself].reshape(shape), nearest.ids[~itself].reshape(shape)
