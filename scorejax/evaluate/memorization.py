# SPDX-License-Identifier: Apache-2.0
"""Are samples copies of training images?

A held-out real image has a nearest training image too. If samples lie no closer to the training set
than held-out images do, the model has not memorised it; if they lie closer, it has. Single copies
are found by how near they are, or by how much nearer than to anything else.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from scorejax.bregman import Divergence, build_index, search


class Nearest(NamedTuple):
    """The k nearest training images, nearest first."""

    index: np.ndarray  # (n, k)
    distance: np.ndarray  # (n, k), Euclidean over all pixels, or the divergence asked for


def nearest_training(
    images: Float[ArrayLike, "n *d"],
    training: Float[ArrayLike, "m *d"],
    *,
    k: int = 1,
    divergence: str | Divergence | None = None,
) -> Nearest:
    """Exact nearest neighbours in pixels, or in whatever features come in the place of images.

    By Euclidean distance, or by a Bregman divergence D(training, image).
    Raises: ValueError unless shapes agree, 1 <= k <= m and all lie in the divergence's domain.
    """
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
    found = search(
        build_index(_rows(training), divergence or "squared_euclidean"), _rows(images), k
    )
    return Nearest(found.ids, np.sqrt(found.distances) if divergence is None else found.distances)


class Rate(NamedTuple):
    """A share of the samples, and the interval of 95 % confidence of Clopper and Pearson."""

    rate: float
    lower: float
    upper: float


def duplicate_rate(nearest: Nearest, *, radius: float) -> Rate:
    """Share of samples whose nearest training image is within the radius.

    The radius is what counts as the same image: for example a low quantile of the distances of
    held-out images, or what a change of no importance to the eye amounts to.
    Raises: ValueError for a negative radius, or no samples.
    """
    if not radius >= 0:
        raise ValueError(f"duplicate_rate needs radius >= 0; got {radius}")
    return _rate(nearest.distance[:, 0] <= radius)


def ratio_test(nearest: Nearest, *, threshold: float = 1 / 3) -> Rate:
    """Share of samples much nearer to one training image than to the next: d1 <= threshold d2.

    No scale of distances has to be chosen. Needs k >= 2; a training image that occurs twice hides
    its copies from this test, unless they are exact. Euclidean distances: a divergence is more like
    their square. Source: Yoon et al. 2023, Diffusion probabilistic models generalize when they fail
    to memorize.
    Raises: ValueError unless 0 < threshold < 1, k >= 2 and there is a sample.
    """
    if nearest.distance.shape[1] < 2:
        raise ValueError("ratio_test needs the two nearest training images of each; got one")
    if not 0 < threshold < 1:
        raise ValueError(f"ratio_test needs 0 < threshold < 1; got {threshold}")
    first, second = nearest.distance[:, :2].T
    return _rate(np.isfinite(first) & (first <= threshold * second))


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
    """Share of samples as close as the closest 1 % of the held-out images: 0.01 by chance."""


def memorization(
    samples: Float[ArrayLike, "n *d"],
    held_out: Float[ArrayLike, "m *d"],
    training: Float[ArrayLike, "k *d"],
) -> Memorization:
    """Compares two samples of distances to the training set.

    Images enter as the model sees them: levels that are exact on one side and dequantised or
    denoised on the other differ in distance for that reason alone.
    Raises: ValueError as `nearest_training`, or if half of the held-out images are training images.
    """
    from scipy.stats import mannwhitneyu

    both = np.concatenate([np.asarray(samples), np.asarray(held_out)])
    distances = nearest_training(both, training).distance[:, 0]
    of_samples, of_held_out = np.split(distances, [len(samples)])
    usual = np.median(of_held_out)
    if usual == 0:
        raise ValueError("memorization needs images held out; half of these are in training")
    test = mannwhitneyu(of_samples, of_held_out, alternative="less")
    # SciPy counts the pairs in which the sample is farther, ties half.
    closer = 1 - test.statistic / (len(of_samples) * len(of_held_out))
    return Memorization(
        distance_ratio=float(np.median(of_samples) / usual),
        probability_closer=float(closer),
        p_value=float(test.pvalue),
        copies=float(np.mean(of_samples <= np.quantile(of_held_out, 0.01))),
    )


def most_copied(nearest: Nearest, *, num: int) -> Int[np.ndarray, "num"]:
    """Indices of the samples closest to the training set, closest first: the worst cases."""
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
