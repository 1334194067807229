# SPDX-License-Identifier: Apache-2.0
"""Are samples copies of training images?

A held-out real image has a nearest training image too. If samples lie no closer to the training set
than held-out images do, the model has not memorised it; if they lie closer, it has.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int


class Nearest(NamedTuple):
    """The k nearest training images, nearest first."""

    index: np.ndarray  # (n, k)
    distance: np.ndarray  # (n, k), Euclidean over all pixels


def nearest_training(
    images: Float[ArrayLike, "n *d"], training: Float[ArrayLike, "m *d"], *, k: int = 1
) -> Nearest:
    """Exact nearest neighbours. Raises: ValueError unless shapes agree and 1 <= k <= m."""
    from sklearn.neighbors import NearestNeighbors

    images, training = np.asarray(images, np.float64), np.asarray(training, np.float64)
    if images.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"images and training images need one shape; got {images.shape[1:]} and "
            f"{training.shape[1:]}"
        )
    if not 1 <= k <= len(training):
        raise ValueError(f"nearest_training needs 1 <= k <= {len(training)}; got {k}")
    if not np.isfinite(images).all():
        raise ValueError("nearest_training needs finite images")
    # Brute force in double precision; a copy has distance 0 up to about 1e-7 of its norm.
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(_rows(training))
    distance, position = index.kneighbors(_rows(images))
    return Nearest(position, distance)


class Memorization(NamedTuple):
    """Distances to the nearest training image: samples against held-out images."""

    distance_ratio: float
    """Median of the samples' distances over the median of the held-out ones': about 1 for a model
    that generalises, near 0 for one that copies."""
    probability_closer: float
    """Probability that a sample is closer to the training set than a held-out image is; 0.5 when
    the two are alike (the Mann-Whitney statistic)."""
    p_value: float
    """Of the one-sided Mann-Whitney test; small if the samples are closer."""
    copies: float
    """Share of samples closer than all but 1 % of the held-out images: 0.01 by chance."""


def memorization(
    samples: Float[ArrayLike, "n *d"],
    held_out: Float[ArrayLike, "m *d"],
    training: Float[ArrayLike, "k *d"],
) -> Memorization:
    """Compares two samples of distances to the training set.

    Images enter as the model sees them: levels that are exact on one side and dequantised or
    denoised on the other differ in distance for that reason alone.
    """
    from scipy.stats import mannwhitneyu

    of_samples = nearest_training(samples, training).distance[:, 0]
    of_held_out = nearest_training(held_out, training).distance[:, 0]
    test = mannwhitneyu(of_samples, of_held_out, alternative="less")
    # SciPy counts the pairs in which the sample is farther, ties half.
    closer = 1 - test.statistic / (len(of_samples) * len(of_held_out))
    return Memorization(
        distance_ratio=float(np.median(of_samples) / np.median(of_held_out)),
        probability_closer=float(closer),
        p_value=float(test.pvalue),
        copies=float(np.mean(of_samples < np.quantile(of_held_out, 0.01))),
    )


def most_copied(nearest: Nearest, *, num: int) -> Int[np.ndarray, "num"]:
    """Indices of the samples closest to the training set, closest first: the worst cases."""
    return np.argsort(nearest.distance[:, 0], kind="stable")[:num]


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
