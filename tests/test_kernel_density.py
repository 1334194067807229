# SPDX-License-Identifier: Apache-2.0
"""Kernel densities are those of scikit-learn on standardised rows, and samples follow them."""

import jax
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity

from scorejax.density import kernel_density
from scorejax.random import row_keys

RNG = jax.random.key(0)


def rows(num, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) * np.array([1.0, 30.0, 0.01])[:dim] + 5.0


@pytest.mark.parametrize("at_once", [4096, 16])
def test_it_is_the_density_of_scikit_learn(x64, monkeypatch, at_once):
    monkeypatch.setattr(kernel_density, "CENTRES_AT_ONCE", at_once)
    x, new = rows(50), rows(20, seed=1)
    params = kernel_density.fit(RNG, x, bandwidth=0.5)
    mean, std = x.mean(axis=0), x.std(axis=0)
    peer = KernelDensity(bandwidth=0.5).fit((x - mean) / std)
    expected = peer.score_samples((new - mean) / std) - np.log(std).sum()
    # Double precision, of squared distances up to 100.
    found = jax.jit(kernel_density.log_prob)(params, new)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_single_precision_keeps_short_and_long_distances():
    x = np.random.default_rng(0).normal(size=(200, 23))
    new = np.concatenate([x[:10] + 1e-3, 10 * x[10:20]])
    scale = 0.5 * x.std(axis=0)
    # Not by scikit-learn, which is off by a tenth at the long distances.
    squares = np.sum(((new[:, None] - x) / scale) ** 2, axis=2)
    log_volume = np.log(scale).sum() + 23 * np.log(2 * np.pi) / 2
    expected = logsumexp(-squares / 2, axis=1) - log_volume - np.log(200)
    found = jax.jit(kernel_density.log_prob)(kernel_density.fit(RNG, x), new.astype(np.float32))
    # Squares up to |x|^2 / h^2 = 10^4, and 10^2 for the short ones, in units of 6e-8.
    np.testing.assert_allclose(found[:10], expected[:10], atol=1e-4)
    np.testing.assert_allclose(found[10:], expected[10:], atol=1e-2)


def test_the_bandwidth_is_that_of_the_largest_held_out_likelihood():
    # In one dimension, of 400 normal rows, Silverman's best is 1.06 * 400^(-1/5) = 0.32.
    params = kernel_density.fit(RNG, rows(400, 1), bandwidth=(0.01, 0.3, 3.0))
    np.testing.assert_allclose(params.scale, 0.3 * rows(400, 1).std(axis=0), rtol=1e-5)


def test_samples_follow_the_density():
    params = kernel_density.fit(RNG, rows(20, 1), bandwidth=0.3)
    sample = jax.jit(lambda rng: kernel_density.sample(rng, params, 2000))
    x = np.asarray(sample(RNG))
    centres = rows(20, 1)[:, 0]
    cdf = lambda u: stats.norm.cdf(u[:, None], centres, float(params.scale[0])).mean(axis=1)
    assert stats.kstest(x[:, 0], cdf).pvalue > 1e-4
    # A row is a function of its own key, wherever it stands.
    np.testing.assert_allclose(sample(row_keys(RNG, 2000)[::-1])[::-1], x, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (rows(9), {"bandwidth": 0.0}, "bandwidth needs to be positive; got 0.0"),
        (rows(9), {"bandwidth": ()}, "needs a value, or several"),
        (rows(9) * np.array([1, 0, 1]), {}, "column 1 is 0 in all 9 rows"),
        (rows(9) * np.nan, {}, "finite"),
    ],
)
def test_bad_input_is_one_line(x, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_density.fit(RNG, x, **options)
