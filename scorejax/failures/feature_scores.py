# SPDX-License-Identifier: Apache-2.0
"""Scores of features that are fitted to labelled training rows. High scores mean normal.

Each is a pair: `fit_*` computes in double precision on the host what the score needs, and the score
itself runs in single precision, and row by row. All but `nearest_neighbours` run in JAX, and can be
differentiated in the features. Accelerators multiply in full single precision as well: squares of
distances are differences of larger numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from scorejax.density import gaussian
from scorejax.density.gaussian import Gaussians
from scorejax.density.rows import require_all_classes
from scorejax.failures.training_rows import finite_rows, labelled_rows, paired_rows
from scorejax.typing import PyTree

BLOCK_BYTES = 2**20
"""Size of a block of similarities, which fits the cache."""


class RelativeGaussians(NamedTuple):
    """Gaussians of the classes, and one of all rows as if they were one class."""

    classes: Gaussians
    background: Gaussians


class Neighbourhood(NamedTuple):
    """Training rows of length 1, and the number of the neighbour whose distance counts."""

    rows: Float[np.ndarray, "n d"]
    k: int


class VirtualLogit(NamedTuple):
    """Origin, directions outside the principal subspace, and the scale of the virtual logit."""

    origin: Float[ArrayLike, "d"]
    residual: Float[ArrayLike, "d r"]
    scale: float


def fit_mahalanobis(
    features: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, "n"],
    *,
    num_classes: int | None = None,
    ridge: float = 1e-6,
) -> Gaussians:
    """Fits class means and their common covariance, as `gaussian.fit_by_class`.

    `ridge` times the mean variance is added to all variances, so that constant features pass.
    Raises: ValueError for features and labels of different lengths, features that are not finite or
    all constant, labels outside 0 .. num_classes - 1, or a class without rows.
    Source: Lee et al. 2018, arXiv:1807.03888, Eqs. 1-2.
    """
    return _single(gaussian.of_classes(*labelled_rows(features, labels, num_classes), ridge))


@jax.jit
def mahalanobis(params: Gaussians, features: Float[ArrayLike, "b d"]) -> Float[Array, "b"]:
    """Minus the squared Mahalanobis distance to the nearest class mean.

    Raises: ValueError for features of another length than those fitted to.
    """
    features = _of_width(features, params.center.shape[0])
    white = _matmul(features - params.center[None], params.whitening)
    products = _matmul(white, params.means.T)
    nearest = jnp.max(2 * products - jnp.sum(params.means**2, axis=1)[None], axis=1)
    return nearest - jnp.sum(white**2, axis=1)


def fit_relative_mahalanobis(
    features: Float[ArrayLike, "n d"],
    labels: Int[ArrayLike, "n"],
    *,
    num_classes: int | None = None,
    ridge: float = 1e-6,
) -> RelativeGaussians:
    """Fits `fit_mahalanobis` and one Gaussian of all rows. Raises: ValueError as that."""
    classes = fit_mahalanobis(features, labels, num_classes=num_classes, ridge=ridge)
    background = fit_mahalanobis(features, np.zeros(len(features), int), ridge=ridge)
    return RelativeGaussians(classes, background)


@jax.jit
def relative_mahalanobis(
    params: RelativeGaussians, features: Float[ArrayLike, "b d"]
) -> Float[Array, "b"]:
    """`mahalanobis` minus the same for one Gaussian of all rows.

    Directions in which classes do not differ cancel. Raises: ValueError as `mahalanobis`.
    Source: Ren et al. 2021, arXiv:2106.09022.
    """
    return mahalanobis(params.classes, features) - mahalanobis(params.background, features)


def fit_nearest_neighbours(features: Float[ArrayLike, "n d"], *, k: int = 50) -> Neighbourhood:
    """Keeps the rows, scaled to length 1.

    Raises: ValueError unless 1 <= k <= n, and for features that are not finite.
    """
    features = finite_rows(features)
    if not 1 <= k <= len(features):
        raise ValueError(
            f"the score of the k-th neighbour needs 1 <= k <= {len(features)}, the number of "
            f"training rows; got k={k}."
        )
    return Neighbourhood(_unit(features).astype(np.float32), int(k))


def nearest_neighbours(
    params: Neighbourhood, features: Float[ArrayLike, "b d"]
) -> Float[np.ndarray, "b"]:
    """Minus the distance from z / |z| to its k-th nearest training row, on the host.

    Rounding leaves an error of about 2e-7 in the square of the distance. Raises: ValueError for
    features that are not finite, or of another length than those fitted to.
    Source: Sun et al. 2022, arXiv:2204.06507.
    """
    # Selecting one order statistic of each row of a product is all that is needed. The search of
    # `bregman`, which ranks the neighbours themselves in double precision, takes 60 times as long
    # (n = 700, d = 64, k = 50); jax.lax.top_k takes 23 times as long on a CPU. NumPy selects in
    # place, and multiplies these sizes 1.2 to 1.4 times as fast as XLA on a CPU.
    queries = np.asarray(features, np.float32)
    _require_width(queries, params.rows.shape[1])
    if not np.isfinite(queries).all():
        finite_rows(queries)  # Raises, and names the number.
    queries = _unit(queries)
    num, k = params.rows.shape[0], params.k
    size = max(1, min(BLOCK_BYTES // (4 * num), len(queries)))
    block, scores = np.empty((size, num), np.float32), np.empty(len(queries), np.float32)
    for start in range(0, len(queries), size):
        rows = queries[start : start + size]
        similar = np.matmul(rows, params.rows.T, out=block[: len(rows)])
        similar.partition(num - k, axis=1)
        scores[start : start + size] = similar[:, num - k]
    return -np.sqrt(np.maximum(2 - 2 * scores, 0))


def fit_virtual_logit(
    features: Float[ArrayLike, "n d"],
    logits: Float[ArrayLike, "n k"],
    *,
    head: tuple[Float[ArrayLike, "d k"], Float[ArrayLike, "k"]] | None = None,
    dim: int | None = None,
) -> VirtualLogit:
    """Fits the principal subspace of `dim` dimensions, about the point where all logits are equal.

    `head` is the kernel and the bias of the map from features to logits; without it they are found
    by least squares. `dim` defaults to 1000 of 2048 features or more, 512 of 768 or more, else
    half of them. Raises: ValueError for features and logits of different lengths, or not finite,
    and unless 0 < dim < d. Source: Wang et al. 2022, arXiv:2203.10807, Section 4.
    """
    features, logits = paired_rows(features, logits)
    num_features = features.shape[1]
    if dim is None:
        large = 1000 if num_features >= 2048 else 512
        dim = large if num_features >= 768 else num_features // 2
    if not 0 < dim < num_features:
        raise ValueError(
            f"the virtual logit needs 0 < dim < {num_features}, the number of features; got {dim}."
        )
    kernel, bias = _linear_head(features, logits) if head is None else head
    origin = -np.linalg.pinv(np.asarray(kernel, np.float64).T) @ np.asarray(bias, np.float64)
    moved = features - origin[None]
    residual = np.linalg.eigh(moved.T @ moved / len(moved))[1][:, : num_features - dim]
    total = np.linalg.norm(moved @ residual, axis=1).sum()
    if not total > 0:
        raise ValueError(
            f"the virtual logit needs features outside a subspace of {dim} dimensions; these have "
            "none. Choose a smaller dim."
        )
    return _single(VirtualLogit(origin, residual, logits.max(axis=1).sum() / total))


@jax.jit
def virtual_logit(
    params: VirtualLogit, features: Float[ArrayLike, "b d"], logits: Num[ArrayLike, "b k"]
) -> Float[Array, "b"]:
    """Log-sum-exp of the logits minus the virtual logit (ViM).

    The virtual logit is the scaled distance of the features to the principal subspace.
    Raises: ValueError for features of another length than those fitted to, or other logits than one
    row for each of theirs. Source: arXiv:2203.10807, Eq. 7.
    """
    features, logits = _of_width(features, params.origin.shape[0]), as_real(logits)
    _require_pairs(features, logits)
    moved = _matmul(features - params.origin[None], params.residual)
    distance = jnp.sqrt(jnp.sum(moved**2, axis=1))
    return jax.nn.logsumexp(logits, axis=1) - params.scale * distance


def fit_stored_patterns(
    features: Float[ArrayLike, "n d"], logits: Float[ArrayLike, "n k"], labels: Int[ArrayLike, "n"]
) -> Float[Array, "k d"]:
    """Mean features of the correctly classified rows of each class.

    Raises: ValueError for arrays of different lengths, or not finite, and for a class of which no
    row is classified correctly. Source: Zhang et al., ICLR 2023, "Out-of-distribution detection
    based on in-distribution data patterns memorization with modern Hopfield energy".
    """
    features, logits = paired_rows(features, logits)
    features, labels, num_classes = labelled_rows(features, labels, logits.shape[1])
    right = labels == logits.argmax(axis=1)
    require_all_classes(labels[right], num_classes, "rows that are classified correctly")
    features, labels = features[right], labels[right]
    return _single(_class_means(features, labels, num_classes))


@jax.jit
def stored_pattern_energy(
    params: Float[ArrayLike, "k d"],
    features: Float[ArrayLike, "b d"],
    logits: Num[ArrayLike, "b k"],
) -> Float[Array, "b"]:
    """Product of the features with the stored pattern of the predicted class (SHE).

    Raises: ValueError for features or logits of another length than those fitted to, or of
    different numbers of rows.
    """
    num_classes, num_features = jnp.shape(params)
    features, logits = _of_width(features, num_features), as_real(logits)
    _require_pairs(features, logits)
    _require_width(logits, num_classes, "logits")
    return jnp.sum(features * params[jnp.argmax(logits, axis=1)], axis=1)


def as_real(values: Num[ArrayLike, "b d"]) -> Float[Array, "b d"]:
    """The values as they are, or in single precision if they are integers, which would overflow."""
    return jnp.asarray(values, jnp.result_type(values, 1.0))


def _of_width(features: ArrayLike, num: int) -> Array:
    features = as_real(features)
    _require_width(features, num)
    return features


def _require_width(rows: Array | np.ndarray, num: int, name: str = "features") -> None:
    """Raises ValueError for rows that broadcasting and clamped indices would let pass."""
    if rows.ndim != 2 or rows.shape[1] != num:
        raise ValueError(f"the score was fitted to {name} (n, {num}); got {rows.shape}")


def _require_pairs(features: Array, logits: Array) -> None:
    if logits.ndim != 2 or len(logits) != len(features):
        raise ValueError(
            f"{len(features)} rows of features need logits ({len(features)}, k); got {logits.shape}"
        )


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def _linear_head(features: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (d, k) and bias (k,) of the affine map from features to logits, by least squares."""
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    solution = np.linalg.lstsq(rows, logits)[0]
    return solution[:-1], solution[-1]


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(length, np.finfo(rows.dtype).tiny)


def _single(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def _class_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.stack([features[labels == c].mean(axis=0) for c in range(num_classes)])
