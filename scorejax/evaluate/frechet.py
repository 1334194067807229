# SPDX-License-Identifier: Apache-2.0
"""Distances between samples and real examples in a feature space.

The Fréchet distance compares means and covariances. Precision and recall separate its two causes:
samples unlike any real example, and real examples unlike any sample. Class balance measures whether
classes are drawn too often or too rarely. All functions are NumPy in double precision, on features
(n, d).
"""

import math
import os
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy import stats

from scorejax.files import as_path, save_npz, why_unreadable


class Moments(NamedTuple):
    """Mean (d,) and unbiased covariance (d, d)."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: Float[ArrayLike, "n d"]) -> Moments:
    """Mean and covariance of features. Raises: ValueError unless they are finite and n >= 2."""
    return moments_of_chunks([_features(features, at_least=2)])


def moments_of_chunks(chunks: Iterable[Float[ArrayLike, "n d"]]) -> Moments:
    """Mean and covariance of the features of all chunks. Raises: ValueError as `moments`."""
    running = RunningMoments()
    for chunk in chunks:
        running.add(chunk)
    return running.moments()


class RunningMoments:
    """Mean and covariance of features that come in chunks and are not kept.

    Each chunk is centred on its own mean, and the mean of all is moved by differences of means, so
    that nothing cancels. Source: Chan, Golub and LeVeque 1983, Eqs. 1.3-1.4 and 2.1.
    """

    def __init__(self) -> None:
        self._num = 0
        self._mean = self._scatter = np.zeros(())

    def add(self, features: Float[ArrayLike, "n d"]) -> None:
        """Adds a chunk. Raises: ValueError unless it has rows and is finite."""
        features = _features(features, at_least=1)
        num, mean = len(features), features.mean(axis=0)
        centred = features - mean
        total, shift = self._num + num, mean - self._mean
        between = np.outer(shift, shift) * (self._num * num / total)
        self._scatter = self._scatter + centred.T @ centred + between
        self._mean = self._mean + shift * (num / total)
        self._num = total

    def moments(self) -> Moments:
        """Moments of all rows. Raises: ValueError for fewer than two."""
        if self._num < 2:
            raise ValueError(f"moments need at least 2 rows of features; got {self._num}")
        return Moments(self._mean, self._scatter / (self._num - 1))


def gaussian_frechet_distance(first: Moments, second: Moments) -> float:
    """Squared 2-Wasserstein distance of Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Covariances may be singular. Source: Dowson and Landau 1982; Heusel et al. 2017,
    arXiv:1706.08500, Eq. 6.
    Raises: ValueError unless both moments have the same number of features.
    """
    (m1, c1), (m2, c2) = first, second
    if m1.shape != m2.shape:
        raise ValueError(f"moments need the same number of features; got {m1.shape} and {m2.shape}")
    # The square root of the unsymmetric C1 C2 turns complex, or loses half its digits, when a
    # covariance is singular. Its trace is the sum of the singular values of sqrt(C1) sqrt(C2).
    cross = np.linalg.svd(_root(c1) @ _root(c2), compute_uv=False).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


def frechet_distance(first: Float[ArrayLike, "n d"], second: Float[ArrayLike, "m d"]) -> float:
    """Fréchet distance of Gaussians fitted to two sets of features.

    It is biased: two sets of one distribution have a positive expected distance, which falls like
    1 / n. Compare only distances of sets of equal size.
    """
    return gaussian_frechet_distance(moments(first), moments(second))


class Extrapolated(NamedTuple):
    """Distance extrapolated to infinitely many samples, and the standard error of the fit."""

    distance: float
    standard_error: float


def frechet_distance_infinity(
    reference: Moments, features: Float[ArrayLike, "n d"], *, num_points: int = 15, seed: int = 0
) -> Extrapolated:
    """Fréchet distance in the limit of infinitely many samples.

    A line in 1 / n is fitted to the distances of `num_points` random subsets, from a fifth of the
    features to all, and is evaluated at 1 / n = 0. Raises: ValueError unless n >= 10.
    Source: Chong and Forsyth 2020, arXiv:1911.07023, Section 4.
    """
    features = _features(features, at_least=10)
    rng = np.random.default_rng(seed)
    sizes = np.linspace(len(features) / 5, len(features), num_points).astype(int)
    subsets = (features[rng.choice(len(features), size, replace=False)] for size in sizes)
    distances = [gaussian_frechet_distance(reference, moments(subset)) for subset in subsets]
    line = stats.linregress(1 / sizes, distances)
    return Extrapolated(float(line.intercept), float(line.intercept_stderr))


def save_statistics(path: str | os.PathLike, statistics: Moments) -> None:
    """Writes an npz file with arrays `mu` and `sigma`, the format of published statistics."""
    save_npz(path, mu=statistics.mean, sigma=statistics.covariance)


def load_statistics(path: str | os.PathLike) -> Moments:
    """Reads an npz file with arrays `mu` (d,) and `sigma` (d, d).

    Raises: FileNotFoundError; ValueError, one line, if the file is of another kind, or its arrays
    have other shapes or are not finite.
    """
    try:
        with as_path(path).open("rb") as opened, np.load(opened) as file:
            missing = {"mu", "sigma"} - set(file)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no reference statistics at {path}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = why_unreadable(path, error)
        raise ValueError(f"{path} is not a file of reference statistics: {reason}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise ValueError(
            f"{path} needs mu (d,) and sigma (d, d); got {mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path} needs finite mu and sigma; got nan or inf")
    return Moments(mean, covariance)


class PrecisionRecall(NamedTuple):
    """Fraction of samples near real examples, and of real examples near samples."""

    precision: float
    recall: float


def precision_recall(
    real: Float[ArrayLike, "n d"], samples: Float[ArrayLike, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """Improved precision and recall of samples.

    A point is near a set if its distance to some member is at most the distance of that member to
    its k-th nearest neighbour within the set. Precision tends to rise with the number of real
    examples, recall with the number of samples.
    Raises: ValueError unless k >= 1 and both sets are finite and have more than k rows.
    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eqs. 1-2.
    """
    real, samples = _features(real, at_least=k + 1), _features(samples, at_least=k + 1)
    if k < 1:
        raise ValueError(f"precision_recall needs k >= 1; got {k}")
    return PrecisionRecall(_covered(real, samples, k), _covered(samples, real, k))


class ClassBalance(NamedTuple):
    """Total variation distance between class frequencies of samples and data, and its null."""

    total_variation: float
    chance: float
    """Mean of the distance for as many draws from the data's frequencies."""
    chance_95: float
    """95th percentile of the distance for such draws."""


def class_balance(
    real: Int[ArrayLike, "n"], samples: Int[ArrayLike, "m"], *, num_classes: int, seed: int = 0
) -> ClassBalance:
    """Compares the class frequencies of samples with those of real examples.

    Total variation is half the sum of absolute differences; its null distribution comes from
    10 000 simulated sets. Raises: ValueError if a set is empty or a class is >= num_classes.
    """
    real, samples = np.asarray(real), np.asarray(samples)
    if not len(real) or not len(samples):
        raise ValueError(
            f"class_balance needs two non-empty sets; got {len(real)} and {len(samples)}"
        )
    expected = np.bincount(real, minlength=num_classes) / len(real)
    observed = np.bincount(samples, minlength=num_classes) / len(samples)
    if len(expected) != num_classes or len(observed) != num_classes:
        raise ValueError(f"class_balance needs classes below {num_classes}; got a larger class")
    drawn = np.random.default_rng(seed).multinomial(len(samples), expected, size=10_000)
    chance = np.abs(drawn / len(samples) - expected).sum(axis=1) / 2
    distance = float(np.abs(observed - expected).sum() / 2)
    return ClassBalance(distance, float(chance.mean()), float(np.quantile(chance, 0.95)))


def _covered(members: np.ndarray, points: np.ndarray, k: int) -> float:
    """Fraction of points within the k-th neighbour distance of some member."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k).fit(members)
    radii = index.kneighbors()[0][:, -1]  # Without a query, a member does not count itself.
    covered = 0
    for rows in np.array_split(points, math.ceil(len(points) / 1024)):
        square = ((rows**2).sum(1)[:, None] + (members**2).sum(1)) - 2 * rows @ members.T
        covered += int((np.sqrt(np.maximum(square, 0)) <= radii).any(axis=1).sum())
    return covered / len(points)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _features(features: ArrayLike, at_least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < at_least:
        raise ValueError(
            f"features need shape (n, d) with n at least {at_least}; got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"features need to be finite; {(~np.isfinite(features)).sum()} are not")
    return features
