# SPDX-License-Identifier: Apache-2.0
"""Gaussian densities and their mixtures, against scipy, scikit-learn and laws in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture as ScikitMixture

from scorejax.density import gaussian, gaussian_mixture
from scorejax.random import row_keys
from tests.slow import slow_where

RNG = jax.random.key(0)


def correlated(num, dim=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + 5 * rng.normal(size=dim)


def two_clusters(num=300):
    rng = np.random.default_rng(1)
    narrow = rng.normal(size=(num, 2)) * [0.3, 1.0] + [2, 0]
    return np.concatenate([narrow, correlated(num, 2) - correlated(num, 2).mean(axis=0) - [3, 0]])


def some_mixture(dim=3, num=4, seed=0):
    rng = np.random.default_rng(seed)
    roots = np.triu(rng.normal(size=(num, dim, dim)), 1) + np.eye(dim) * rng.uniform(0.5, 2, dim)
    weights = softmax(rng.normal(size=num))
    values = np.log(weights), rng.normal(0, 2, (num, dim)), roots
    return gaussian_mixture.GaussianMixture(*map(jnp.asarray, values))


def covariances(mixture):
    return np.stack([np.linalg.inv(w @ w.T) for w in np.asarray(mixture.whitening)])


def test_the_gaussian_is_that_of_scipy_at_the_moments_of_the_rows(x64):
    x, new = correlated(50), correlated(5, seed=1)
    found = gaussian.log_prob(gaussian.fit(RNG, x), jnp.asarray(new))
    expected = stats.multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True)).logpdf(new)
    # Far rows of an ill-conditioned covariance; double precision.
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("dim", "expected"), [(8, 0.87533), (64, 0.70087)])
def test_the_log_density_is_chi_squared_and_finds_shifts_as_often_as_it_must(dim, expected):
    # Oracle 9. The AUROC of n and n rows has a standard error of less than sqrt(2 / (12 n)).
    num, rng = 8000, np.random.default_rng(2)
    root = rng.normal(size=(dim, dim)) + 3 * np.eye(dim)
    whitening = np.linalg.inv(root).T  # rows z @ root.T have covariance root @ root.T
    values = np.zeros(1), np.zeros((1, dim)), np.ones(dim), whitening
    params = gaussian.Gaussians(*(jnp.asarray(v, jnp.float32) for v in values))
    z = rng.normal(size=(2 * num, dim))
    z[num:, 0] += 3.0
    score = np.asarray(gaussian.log_prob(params, jnp.asarray(z @ root.T + 1, jnp.float32)), float)
    constant = np.linalg.slogdet(2 * np.pi * root @ root.T)[1]
    assert stats.kstest(-2 * score[:num] - constant, stats.chi2(dim).cdf).pvalue > 1e-4
    auroc = roc_auc_score(np.arange(2 * num) >= num, -score)
    assert abs(auroc - expected) < 4 * np.sqrt(1 / (6 * num))


def test_the_classes_of_gaussians_are_those_of_discriminant_analysis(x64):
    x = correlated(120)
    labels = np.digitize(x[:, 0] + np.random.default_rng(0).normal(size=120), [4, 6])
    params = gaussian.fit_by_class(RNG, x, labels)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(x, labels)
    joint = gaussian.class_log_probs(params, jnp.asarray(x)) + params.log_weights[None]
    np.testing.assert_allclose(softmax(joint, axis=1), peer.predict_proba(x), atol=1e-10)
    np.testing.assert_allclose(gaussian.log_prob(params, jnp.asarray(x)), logsumexp(joint, axis=1))


def test_permuted_labels_change_densities_by_class_and_new_names_of_classes_do_not(x64):
    # Oracle 16. Other densities see no labels at all.
    x, rng = two_clusters(), np.random.default_rng(0)
    labels = np.repeat([0, 1], len(x) // 2)
    log_prob = lambda labels: gaussian.log_prob(
        gaussian.fit_by_class(RNG, x, labels), jnp.asarray(x)
    )
    np.testing.assert_allclose(log_prob(1 - labels), log_prob(labels), rtol=1e-10)
    assert np.abs(log_prob(rng.permutation(labels)) - log_prob(labels)).max() > 1


def test_the_density_of_a_mixture_is_that_of_scipy(x64):
    mixture, x = some_mixture(), correlated(6)
    parts = zip(np.exp(mixture.log_weights), mixture.means, covariances(mixture), strict=True)
    terms = [np.log(w) + stats.multivariate_normal(m, c).logpdf(x) for w, m, c in parts]
    found = jax.jit(gaussian_mixture.log_prob)(mixture, x)
    np.testing.assert_allclose(found, logsumexp(terms, axis=0), rtol=1e-10)


def test_a_component_by_itself_has_the_moments_of_the_rows(x64):
    # Oracle 12.
    x = correlated(40)
    mixture = gaussian_mixture.fit(RNG, x, num_components=1, ridge=0.0)
    np.testing.assert_allclose(mixture.means[0], x.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(covariances(mixture)[0], np.cov(x.T, bias=True), rtol=1e-8)


def test_the_likelihood_never_falls(x64):
    # Oracle 12.
    x, step = jnp.asarray(two_clusters()), jax.jit(gaussian_mixture.em_step)
    mixture, values = some_mixture(2, 4), []
    for _ in range(40):
        mixture, value = step(mixture, x, 0.0)
        values.append(float(value))
    assert np.diff(values).min() > -1e-9 and values[-1] - values[0] > 1


def test_the_fit_is_that_of_scikit_learn(x64):
    x = two_clusters()
    options = {"num_components": 2, "ridge": 0.0, "tolerance": 1e-12}
    mixture = gaussian_mixture.fit(RNG, x, **options)
    peer = ScikitMixture(2, reg_covar=0.0, tol=1e-12, max_iter=1000, random_state=0).fit(x)
    # Both stop when a step gains 1e-12; EM converges linearly, so that some 1e-11 are left.
    found = gaussian_mixture.log_prob(mixture, jnp.asarray(x))
    np.testing.assert_allclose(found, peer.score_samples(x), atol=1e-5)
    assert abs(np.mean(found) - peer.score(x)) < 1e-9


@pytest.mark.deep
@pytest.mark.parametrize("start", slow_where(lambda s: s == "rows", gaussian_mixture.STARTS))
def test_held_out_rows_choose_the_number_of_components(start):
    # A Gaussian loses half a nat a row here, which 60 rows tell; from distant rows or any rows.
    mixture = gaussian_mixture.fit(RNG, two_clusters(), num_components=(1, 2), start=start)
    assert mixture.means.shape == (2, 2)
    assert np.sort(np.asarray(mixture.means)[:, 0]) == pytest.approx([-3, 2], abs=0.5)


@pytest.mark.parametrize("density", ["classes", "mixture"])
def test_samples_have_the_moments_of_the_density(density):
    num = 20_000
    if density == "mixture":
        module, params = gaussian_mixture, some_mixture()
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        weights, means = np.exp(params.log_weights), np.asarray(params.means)
        within = np.einsum("k,kij->ij", weights, covariances(params))
    else:
        x, labels = correlated(90), np.repeat([0, 0, 1], 30)
        module, params = gaussian, gaussian.fit_by_class(RNG, x, labels)
        weights, means = (np.array([2 / 3, 1 / 3]), np.stack([x[:60].mean(0), x[60:].mean(0)]))
        off = x - means[labels]
        within = off.T @ off / 90
    sample = jax.jit(lambda rng: module.sample(rng, params, num))
    x = np.asarray(sample(RNG), float)
    mean = weights @ means
    covariance = within + np.einsum("k,ki,kj->ij", weights, means - mean, means - mean)
    std = np.sqrt(np.diag(covariance))
    # Five standard errors; those of a covariance are less than sqrt(3) of a Gaussian's.
    assert (np.abs(x.mean(axis=0) - mean) < 5 * std / np.sqrt(num)).all()
    assert (np.abs(np.cov(x.T) - covariance) < 5 * np.sqrt(6 / num) * np.outer(std, std)).all()
    # A row is a function of its own key, wherever it stands.
    reverse = sample(row_keys(RNG, num)[::-1])[::-1]
    np.testing.assert_allclose(reverse, x, rtol=1e-5, atol=1e-5)


def bad_fits():
    x, labels = correlated(20), np.arange(20) % 2
    spoilt = x.copy()
    spoilt[3] = np.nan
    by_class = lambda x=x, **kw: gaussian.fit_by_class(RNG, x, **kw)
    mixture = lambda x=x, **kw: gaussian_mixture.fit(RNG, x, **kw)
    return {
        "1 of 20 rows": lambda: mixture(spoilt),
        "all 20 rows are equal": lambda: mixture(np.ones((20, 3))),
        r"n >= 2 and d >= 1; got shape \(20,\)": lambda: mixture(x[:, 0]),
        "not singular": lambda: gaussian.fit(RNG, x[:, [0, 0]]),
        "all are constant within a class": lambda: by_class(x=x[labels], labels=labels),
        "class 1 of 3 has none": lambda: by_class(labels=2 * labels),
        "20 rows need as many integer labels": lambda: by_class(labels=labels[1:]),
        "0 .. 0; got -1 .. 0": lambda: by_class(labels=labels - 1),
        "0 .. 0; got 0 .. 1": lambda: by_class(labels=labels, num_classes=1),
        "ridge needs to be at least 0; got -1.0": lambda: mixture(ridge=-1.0),
        "1 .. 20, the rows; got 21": lambda: mixture(num_components=(1, 21)),
        "did you mean 'rows'": lambda: mixture(start="row"),
        "Raise ridge=0": lambda: mixture(x[:, [0, 0]], num_components=1, ridge=0.0),
    }


@pytest.mark.parametrize("message", bad_fits())
def test_what_cannot_be_fitted_is_refused(message):
    with pytest.raises(ValueError, match=message):
        bad_fits()[message]()
