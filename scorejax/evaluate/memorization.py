# SPDX-License-Identifier: Apache-2.0
"""Tests whether samples are copies of training images.

Held-out images set the scale: a model that generalises draws samples about as far from the training
set as held-out images are; a model that memorises draws them closer. Individual copies are detected
by the distance to the nearest training image, or by its ratio to the second nearest distance.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from scorejax.bregman import Divergence, build_index, search


class Nearest(NamedTuple):
    """Indices and distances of the k nearest training images, nearest first."""

    index: np.ndarray  # (n, k)
    distance: np.ndarray  # (n, k), Euclidean over all pixels, or the chosen divergence


def nearest_training(
    images: Float[ArrayLike, "n *d"],
    training: Float[ArrayLike, "m *d"],
    *,
    k: int = 1,
    divergence: str | Divergence | None = None,
) -> Nearest:
    """Finds the exact k nearest training images of each image; features may replace images.

    Distances are Euclidean, or a Bregman divergence D(training, image).
    Raises: ValueError unless shapes agree, 1 <= k <= m and all values lie in the domain of the
    divergence.
    """
    images, training = np.asarray(images, np.float64), np.asarray(training, np.float64)
    if images.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"images and training images need the same shape; got {images.shape[1:]} and "
            f"{training.shape[1:]}"
        )
    if not 1 <= k <= len(training):
        raise ValueError(f"nearest_training needs 1 <= k <= {len(training)}; got {k}")
    if not np.isfinite(images).all():
        raise ValueError("nearest_training needs finite images; got nan or inf")
    index = build_index(_rows(training), divergence or "squared_euclidean")
    neighbours = search(index, _rows(images), k)
    distance = np.sqrt(neighbours.distances) if divergence is None else neighbours.distances
    return Nearest(neighbours.ids, distance)


class Rate(NamedTuple):
    """Fraction of samples, with its 95 % Clopper-Pearson confidence interval."""

    rate: float
    lower: float
    upper: float


def duplicate_rate(nearest: Nearest, *, radius: float) -> Rate:
    """Fraction of samples within `radius` of a training image.

    Choose the radius below which two images count as the same: a low quantile of the distances of
    held-out images, say, or the distance of an imperceptible change.
    Raises: ValueError if the radius is negative or there are no samples.
    """
    if not radius >= 0:
        raise ValueError(f"duplicate_rate needs radius >= 0; got {radius}")
    return _rate(nearest.distance[:, 0] <= radius)


def ratio_test(nearest: Nearest, *, threshold: float = 1 / 3) -> Rate:
    """Fraction of samples much closer to one training image than to the next: d1 <= threshold d2.

    The test needs no scale of distances. Distances need to be Euclidean, since a divergence behaves
    like their square. A duplicated training image hides its copies, unless they are exact.
    Raises: ValueError unless 0 < threshold < 1, k >= 2 and there is a sample.
    Source: Yoon et al. 2023, Diffusion probabilistic models generalize when they fail to memorize.
    """
    if nearest.distance.shape[1] < 2:
        raise ValueError("ratio_test needs the two nearest training images (k >= 2); got one")
    if not 0 < threshold < 1:
        raise ValueError(f"ratio_test needs 0 < threshold < 1; got {threshold}")
    first, second = nearest.distance[:, :2].T
    return _rate(np.isfinite(first) & (first <= threshold * second))


class Memorization(NamedTuple):
    """Compares samples with held-out images by distance to the nearest training image."""

    distance_ratio: float
    """Median distance of samples over that of held-out images: about 1 if the model generalises,
    near 0 if it copies."""
    probability_closer: float
    """Probability that a sample is closer to the training set than a held-out image (the
    Mann-Whitney statistic): 0.5 if both have the same distribution."""
    p_value: float
    """p-value of the one-sided Mann-Whitney test; small if samples are closer."""
    copies: float
    """Fraction of samples as close as the closest 1 % of held-out images: 0.01 by chance."""


def memorization(
    samples: Float[ArrayLike, "n *d"],
    held_out: Float[ArrayLike, "m *d"],
    training: Float[ArrayLike, "k *d"],
) -> Memorization:
    """Compares the distances of samples and of held-out images to the training set.

    Preprocess all three sets alike: exact grey levels against dequantised or denoised ones differ
    in distance for that reason alone.
    Raises: ValueError as `nearest_training`, or if half of the held-out images are training images.
    """
    from scipy.stats import mannwhitneyu

    both = np.concatenate([np.asarray(samples), np.asarray(held_out)])
    distances = nearest_training(both, training).distance[:, 0]
    of_samples, of_held_out = np.split(distances, [len(samples)])
    held_out_median = np.median(of_held_out)
    if held_out_median == 0:
        raise ValueError("memorization needs held-out images; half of these are training images")
    test = mannwhitneyu(of_samples, of_held_out, alternative="less")
    # SciPy counts the pairs in which the sample is farther; a tie counts one half.
    closer = 1 - test.statistic / (len(of_samples) * len(of_held_out))
    return Memorization(
        distance_ratio=float(np.median(of_samples) / held_out_median),
        probability_closer=float(closer),
        p_value=float(test.pvalue),
        copies=float(np.mean(of_samples <= np.quantile(of_held_out, 0.01))),
    )


def most_copied(nearest: Nearest, *, num: int) -> Int[np.ndarray, "num"]:
    """Indices of the `num` samples closest to the training set, closest first."""
    return np.argsort(nearest.distance[:, 0], kind="stable")[:num]


def _rate(is_copy: np.ndarray) -> Rate:
    from scipy.stats import binomtest

    if not len(is_copy):
        raise ValueError("a rate needs at least one sample; got none")
    test = binomtest(int(is_copy.sum()), len(is_copy))
    interval = test.proportion_ci(confidence_level=0.95, method="exact")
    return Rate(float(test.statistic), float(interval.low), float(interval.high))


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), math.prod(images.shape[1:]))
