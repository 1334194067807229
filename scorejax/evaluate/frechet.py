# SPDX-License-Identifier: Apache-2.0
"""How far a set of samples is from a set of real examples, in the space of some features.

The Fréchet distance compares the two first moments; precision and recall tell apart what it mixes:
samples that look like nothing real, and real examples that no sample looks like. Class balance asks
whether some classes are drawn too often. All are NumPy in double precision, on (n, d) features.
"""

import math
import os
import zipfile
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy import stats

from scorejax.files import save_npz


class Moments(NamedTuple):
    """Mean (d,) and unbiased covariance (d, d)."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: Float[ArrayLike, "n d"]) -> Moments:
    """Raises: ValueError for fewer than two rows, or features that are not finite."""
    features = _features(features, at_least=2)
    return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features.T)))


def gaussian_frechet_distance(first: Moments, second: Moments) -> float:
    """Squared 2-Wasserstein distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians.

    Covariances may be singular. Source: Dowson and Landau 1982; Heusel et al. 2017,
    arXiv:1706.08500, Eq. 6.
    Raises: ValueError for moments of features of two sizes.
    """
    (m1, c1), (m2, c2) = first, second
    if m1.shape != m2.shape:
        raise ValueError(f"both need features of one size; got {m1.shape} and {m2.shape}")
    # The usual square root of the unsymmetric C1 C2 turns complex, or loses half its digits, when
    # a covariance is singular. Its trace is the sum of the singular values of sqrt(C1) sqrt(C2).
    cross = np.linalg.svd(_root(c1) @ _root(c2), compute_uv=False).sum()
    return float(((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


def frechet_distance(first: Float[ArrayLike, "n d"], second: Float[ArrayLike, "m d"]) -> float:
    """Fréchet distance of the Gaussians with the moments of two sets of features.

    Its expectation is above zero for two sets of one law, and falls like 1 / n: compare only
    numbers from sets of equal size.
    """
    return gaussian_frechet_distance(moments(first), moments(second))


class Extrapolated(NamedTuple):
    """A distance in the limit of infinitely many samples, and the standard error of the fit."""

    distance: float
    standard_error: float


def frechet_distance_infinity(
    reference: Moments, features: Float[ArrayLike, "n d"], *, num_points: int = 15, seed: int = 0
) -> Extrapolated:
    """The Fréchet distance without the bias of a finite sample, by a line in 1 / n.

    Distances of random parts of n features, from a fifth of them to all, are extrapolated to
    1 / n = 0. Source: Chong and Forsyth 2020, arXiv:1911.07023, Section 4.
    """
    features = _features(features, at_least=10)
    rng = np.random.default_rng(seed)
    sizes = np.linspace(len(features) / 5, len(features), num_points).astype(int)
    parts = (features[rng.choice(len(features), size, replace=False)] for size in sizes)
    distances = [gaussian_frechet_distance(reference, moments(part)) for part in parts]
    line = stats.linregress(1 / sizes, distances)
    return Extrapolated(float(line.intercept), float(line.intercept_stderr))


def save_statistics(path: str | os.PathLike, statistics: Moments) -> None:
    """Writes an npz file of `mu` and `sigma`, as others publish and read them."""
    save_npz(path, mu=statistics.mean, sigma=statistics.covariance)


def load_statistics(path: str | os.PathLike) -> Moments:
    """Reads an npz file of `mu` (d,) and `sigma` (d, d).

    Raises: FileNotFoundError; ValueError, one line, for another kind of file or of numbers.
    """
    try:
        with np.load(path) as file:
            missing = {"mu", "sigma"} - set(file)
            if missing:
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no reference statistics at {path}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no file of reference statistics: {reason}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean),) * 2:
        raise ValueError(
            f"{path} needs mu (d,) and sigma (d, d); got {mean.shape} and {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path} has numbers that are not finite")
    return Moments(mean, covariance)


class PrecisionRecall(NamedTuple):
    """Share of samples near real examples, and of real examples near samples."""

    precision: float
    recall: float


def precision_recall(
    real: Float[ArrayLike, "n d"], samples: Float[ArrayLike, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """A point lies near a set if it is no farther from one of its members than its k-th neighbour.

    Both tend to rise with the size of the other set. Source: Kynkäänniemi et al. 2019,
    arXiv:1904.06991, Eqs. 1-2.
    Raises: ValueError unless k >= 1 and both sets are finite, of one d and of more than k rows.
    """
    real, samples = _features(real, at_least=k + 1), _features(samples, at_least=k + 1)
    if k < 1:
        raise ValueError(f"precision_recall needs k >= 1; got {k}")
    return PrecisionRecall(_covered(real, samples, k), _covered(samples, real, k))


class ClassBalance(NamedTuple):
    """Total variation between the classes of the samples and the data's, and what chance gives."""

    total_variation: float
    chance: float
    """Its mean for as many samples from the data's frequencies."""
    chance_95: float
    """Its 95th percentile there: samples that are balanced stay below it 19 times of 20."""


def class_balance(
    real: Int[ArrayLike, "n"], samples: Int[ArrayLike, "m"], *, num_classes: int, seed: int = 0
) -> ClassBalance:
    """Half the sum of the absolute differences of class frequencies; chance from 10 000 draws.

    Raises: ValueError for a set without classes, or a class that is not in 0 .. num_classes - 1.
    """
    real, samples = np.asarray(real), np.asarray(samples)
    if not len(real) or not len(samples):
        raise ValueError(f"class_balance needs classes; got {len(real)} and {len(samples)}")
    expected = np.bincount(real, minlength=num_classes) / len(real)
    observed = np.bincount(samples, minlength=num_classes) / len(samples)
    if len(expected) != num_classes or len(observed) != num_classes:
        raise ValueError(f"class_balance needs classes below {num_classes}; got a larger one")
    drawn = np.random.default_rng(seed).multinomial(len(samples), expected, size=10_000)
    chance = np.abs(drawn / len(samples) - expected).sum(axis=1) / 2
    distance = float(np.abs(observed - expected).sum() / 2)
    return ClassBalance(distance, float(chance.mean()), float(np.quantile(chance, 0.95)))


def _covered(members: np.ndarray, points: np.ndarray, k: int) -> float:
    """Share of points that lie within some member's distance to its k-th other member."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=k).fit(members)
    radii = index.kneighbors()[0][:, -1]  # Without a query, a member is not its own neighbour.
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
        raise ValueError(f"features need finite numbers; {(~np.isfinite(features)).sum()} are not")
    return features
