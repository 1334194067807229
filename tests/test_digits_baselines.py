# SPDX-License-Identifier: Apache-2.0
"""The densities that a model of the digits has to beat are what they claim to be."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, ttest_1samp
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from benchmarks import digits_baselines as baselines
from benchmarks import digits_quality as quality
from scorejax.data import images


@pytest.fixture(scope="module")
def levels():
    image = images.load("digits", "train").image
    return image.reshape(len(image), -1).astype(np.float64)


def test_gaussian_has_the_moments_of_the_dequantised_levels(levels):
    # 100 draws per image, 89 800 in all; only the place within a cell is random, std 0.017. So a
    # mean has standard error 0.017 / sqrt(89 800) = 5.7e-5, and a covariance at most sqrt(2) * 0.41
    # times that, 3.3e-5 (no pixel has a larger std than 0.41). Five of each are allowed.
    fitted = baselines.fit_gaussian(levels, shrinkage=0.0)
    x = baselines.draws(levels, 100, seed=0)
    np.testing.assert_allclose(fitted.means[0, 0], x.mean(0), atol=2.9e-4)
    np.testing.assert_allclose(fitted.covariances[0], np.cov(x.T), atol=1.7e-4)


def test_gaussian_density_is_scipys(levels):
    fitted = baselines.fit_gaussian(levels, shrinkage=0.03)
    x = baselines.draws(levels[:20], 1, seed=0)
    expected = multivariate_normal(fitted.means[0, 0], fitted.covariances[0]).logpdf(x)
    # Condition number about 3e3: float64 keeps 12 digits.
    np.testing.assert_allclose(baselines.log_density(fitted, x), expected, rtol=1e-10)


def test_kernel_density_is_scikit_learns_when_the_kernel_is_isotropic(levels):
    kernel = 0.05 * np.eye(64)
    weights = np.full((1, len(levels)), -math.log(len(levels)))
    mixture = baselines.Mixture(weights, (levels[None] + 0.5) / 17, kernel[None])
    x = baselines.draws(levels[:20], 1, seed=0)
    oracle = KernelDensity(bandwidth=math.sqrt(0.05)).fit((levels + 0.5) / 17)
    # Scikit-learn's tree stops at a relative error of 1e-8 by default.
    np.testing.assert_allclose(
        baselines.log_density(mixture, x), oracle.score_samples(x), rtol=1e-7
    )


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_mixture_density_is_scikit_learns(levels, kind):
    fitted = baselines.fit_mixture(levels[:300], kind=kind, num_components=4, seed=0)
    oracle = GaussianMixture(
        4, covariance_type=kind, reg_covar=baselines.CELL_VARIANCE, random_state=0, tol=1e-2
    ).fit((levels[:300] + 0.5) / 17)
    x = baselines.draws(levels[300:320], 1, seed=0)
    np.testing.assert_allclose(baselines.log_density(fitted, x), oracle.score_samples(x), rtol=1e-8)


def test_averaging_mixtures_averages_their_densities(levels):
    fits = [
        baselines.fit_mixture(levels[:200], kind="diag", num_components=3, seed=seed)
        for seed in range(3)
    ]
    x = baselines.draws(levels[200:210], 1, seed=0)
    each = np.array([baselines.log_density(fit, x) for fit in fits])
    expected = np.log(np.exp(each - each.max(0)).mean(0)) + each.max(0)
    np.testing.assert_allclose(
        baselines.log_density(baselines.average(fits), x), expected, rtol=1e-10
    )


def test_bits_of_the_uniform_density_are_those_of_its_levels():
    # Density 1 on the cube gives each of the 17 levels probability 1 / 17.
    np.testing.assert_allclose(baselines.bits_per_dim(np.zeros(1)), math.log2(17), rtol=1e-12)


def test_draws_stay_in_their_cell_and_beside_their_image(levels):
    x = baselines.draws(levels[:5], 3, seed=0).reshape(5, 3, 64)
    np.testing.assert_array_equal(np.floor(17 * x), np.tile(levels[:5, None], (1, 3, 1)))


def test_tuning_picks_the_settings_that_predict_held_out_folds_best(levels):
    order = np.random.default_rng(0).permutation(len(levels))
    folds = [(order[:600], order[600:])]
    grid = [{"shrinkage": s} for s in (0.9, 0.03, 0.5)]
    tuned = baselines.tune(baselines.fit_gaussian, grid, folds, levels)
    assert tuned.settings == {"shrinkage": 0.03}
    whole = baselines.fit_gaussian(levels, shrinkage=0.03)
    np.testing.assert_array_equal(tuned.models[0].covariances, whole.covariances)


def test_published_number_of_the_gaussian():
    # docs/results.md says 2.939 +- 0.011; the draws are seeded, so it is met to its last digit.
    train, test = (images.load("digits", split).image.reshape(-1, 64) for split in images.SPLITS)
    fitted = baselines.fit_gaussian(train.astype(np.float64), shrinkage=0.03)
    row = baselines.evaluate(baselines.Tuned([fitted], {}, 0.0), test.astype(np.float64))
    assert round(row["bits_per_dim"], 3) == 2.939 and round(row["standard_error"], 3) == 0.011


def test_samples_of_a_mixture_follow_its_weights_means_and_covariances():
    # Two components, far apart and far inside [0, 1]^64, where nothing is clipped.
    root = 0.003 * np.random.default_rng(0).normal(size=(64, 64))
    covariances = np.stack([root @ root.T + 1e-4 * np.eye(64), 1e-4 * np.eye(64)])
    weights = np.log([[0.25], [0.75]])
    mixture = baselines.Mixture(weights, np.full((2, 1, 64), [[[0.3]], [[0.7]]]), covariances)
    n = 4000
    x = quality.mixture_samples(np.random.default_rng(1), mixture, n).reshape(n, 64)
    first = x.mean(1) < 0.5
    # Five standard errors: of a share, of 64 means, and of a variance along a fixed direction.
    assert abs(first.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
    error = math.sqrt(covariances[0].diagonal().max() / first.sum())
    np.testing.assert_allclose(x[first].mean(0), 0.3, atol=5 * error)
    direction = np.linspace(-1, 1, 64)
    expected = direction @ covariances[0] @ direction
    ratio = (x[first] @ direction).var() / expected
    assert abs(ratio - 1) < 5 * math.sqrt(2 / first.sum())


def test_interval_over_seeds_is_students():
    mean, half = quality.interval([2.10, 2.13, 2.08])
    expected = ttest_1samp([2.10, 2.13, 2.08], 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean - half, mean + half], expected, rtol=1e-12)
    assert math.isnan(quality.interval([2.1])[1])
