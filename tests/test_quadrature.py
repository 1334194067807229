# SPDX-License-Identifier: Apache-2.0
"""Univariate densities from their scores against closed forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.density.autoregressive import (
    conditional_log_probs,
    discrete_log_probs,
    log_prob,
)
from scorejax.quadrature import adaptive_table, cumulative, quantile
from tests.gaussian_conditionals import Conditionals, covariance, draws, gaussian_head
from tests.slow import deep_where

LEVELS = np.linspace(-1, 1, 17)
"""Grey levels of digits."""
MIXTURES = {
    "normal": ([0.0], [1.0], [1.0], 20.0),
    "narrow": ([1.2345], [0.01], [1.0], 20.0),
    "far apart": ([-3.0, 3.0], [0.3, 0.3], [0.3, 0.7], 20.0),
    "unlike": ([0.0, 8.0], [0.05, 1.5], [0.5, 0.5], 20.0),
    "grey levels": (LEVELS, np.full(17, 0.03), np.full(17, 1 / 17), 1.3),
}
"""Means, standard deviations, weights, and half the range of the quadrature."""


def mixture_log_prob(u: jax.Array, c: jax.Array) -> jax.Array:
    """Log-density of the Gaussian mixture whose parameters are the three thirds of c."""
    means, stds, weights = jnp.split(c, 3, axis=-1)
    z = (u[..., None] - means) / stds
    terms = jnp.log(weights) - jnp.log(stds) - z**2 / 2 - jnp.log(2 * jnp.pi) / 2
    return jax.nn.logsumexp(terms, axis=-1)


def mixture_head(u: jax.Array, c: jax.Array) -> jax.Array:
    shape = jnp.broadcast_shapes(u.shape, c.shape[:-1])
    u, c = jnp.broadcast_to(u, shape), jnp.broadcast_to(c, (*shape, c.shape[-1]))
    return jax.grad(lambda u: jnp.sum(mixture_log_prob(u, c)))(u)


def mixture(name: str) -> tuple[jnp.ndarray, np.ndarray, float]:
    means, stds, weights, limit = MIXTURES[name]
    rng = np.random.default_rng(0)
    which = rng.choice(len(means), 100, p=np.asarray(weights))
    x = np.asarray(means)[which] + np.asarray(stds)[which] * rng.normal(size=100)
    return jnp.concatenate([jnp.asarray(v, jnp.float32) for v in (means, stds, weights)]), x, limit


@pytest.mark.parametrize("name", deep_where(lambda name: name in ("normal", "narrow"), MIXTURES))
def test_log_densities_are_those_of_mixtures_within_the_error_estimate(name):
    c, x, limit = mixture(name)
    x = jnp.asarray(x, jnp.float32)[:, None]
    rows = jnp.broadcast_to(c, (len(x), 1, len(c)))
    measured = jax.jit(
        lambda x: conditional_log_probs(mixture_head, rows, x, low=-limit, high=limit)
    )(x)
    errors = np.abs(measured.log_prob - mixture_log_prob(x, rows))
    # 1e-4 nats is asked for; 17 modes on 96 cells leave 1e-3.
    assert errors.max() < (1e-3 if name == "grey levels" else 1e-4)
    # Of single precision, where the rule itself is exact.
    assert np.all(errors < measured.error + 1e-5)


@pytest.mark.deep
def test_a_range_that_cuts_off_mass_shows_in_the_error():
    c, x = jnp.array([[[0.0, 1.0]]]), jnp.zeros((1, 1))
    measure = lambda low, high: conditional_log_probs(gaussian_head, c, x, low=low, high=high)
    cut = measure(-1.5, 1.5)
    lost = -np.log(stats.norm.cdf(1.5) - stats.norm.cdf(-1.5))
    assert lost < cut.error[0, 0] < 3 * lost  # p / |s| is above the mass of a Gaussian's tail
    assert np.isinf(measure(1.0, 3.0).error[0, 0]), "the score still points out of the range"
    assert measure(-8.0, 8.0).error[0, 0] < 1e-5


@pytest.mark.deep
def test_a_score_with_structure_beyond_the_range_is_integrated_or_its_error_says_so():
    # log p = -u^2 / 2 - 3 / 5 cos 5u + const: eight periods between the end and the last value. One
    # quartic over all of that was off by hundreds of nats, at an error of 1e-4.
    head = lambda u, c: -u + 3 * jnp.sin(5 * u)
    log_density = lambda u: -(u**2) / 2 - 0.6 * np.cos(5 * u)
    grid = np.linspace(-12, 12, 100_001)
    log_z = np.log(np.trapezoid(np.exp(log_density(grid)), grid))
    x = np.array([-16.0, 0.0, 9.9, 10.2, 11.0, 13.0, 16.0, 20.0])
    c = jnp.zeros((len(x), 1, 1))
    measured = conditional_log_probs(head, c, jnp.asarray(x, jnp.float32)[:, None])
    errors = np.abs(measured.log_prob[:, 0] - (log_density(x) - log_z))
    assert np.all(errors < measured.error[:, 0] + 1e-3)
    # Eight cells of a unit or less, and single precision of 60 nats.
    assert errors[np.abs(x) < 12].max() < 1e-3


def test_distribution_functions_err_by_less_than_they_say():
    c = jnp.asarray([0.0, 2.0, 0.3, 0.3, 0.4, 0.6], jnp.float32)
    x = jnp.linspace(-2.0, 3.5, 101)

    def measure(x):
        table = adaptive_table(mixture_head, c, jnp.float32(-9), jnp.float32(9), num_cells=24)
        return jax.vmap(lambda x: cumulative(table, x))(x)

    below, error = map(np.asarray, jax.jit(measure)(x))
    exact = sum(w * stats.norm.cdf(x, m, 0.3) for w, m in ((0.4, 0.0), (0.6, 2.0)))
    errors = np.abs(below - exact)
    assert errors.max() > 1e-4, "these cells are fine enough for any rule"
    # The rest is the mass of the cells, which the errors of the table tell.
    assert np.all(errors < 2 * error + 3e-4)


def test_products_of_a_quadrature_keep_single_precision_where_the_default_does_not():
    c, x = jnp.array([[[0.0, 1.0]]]), jnp.zeros((1, 1))
    with jax.default_matmul_precision("bfloat16"):
        measure = functools.partial(conditional_log_probs, gaussian_head, c)
        text = str(jax.make_jaxpr(measure)(x))
    found = re.findall(r"dot_general\[.*?\]\s", text, re.S)
    assert len(found) >= 5 and text.count("dot_general[") == text.count("Precision.HIGHEST") / 2


@pytest.mark.deep
def test_a_joint_density_is_the_sum_of_its_conditionals():
    sigma = covariance(5)
    model, x = Conditionals.of(sigma), draws(sigma, 20)
    joint = stats.multivariate_normal(np.zeros(5), sigma).logpdf(x)
    measured = log_prob(gaussian_head, model.contexts, jnp.asarray(x), low=-15.0, high=15.0)
    # 1e-4 nats a dimension.
    np.testing.assert_allclose(measured, joint, atol=5e-4)


@pytest.mark.slow
def test_parts_of_the_work_give_the_same_conditionals():
    sigma = covariance(5)
    model, x = Conditionals.of(sigma), draws(sigma, 20)
    c = model.contexts(jnp.asarray(x))
    parts = [
        conditional_log_probs(
            gaussian_head, c, jnp.asarray(x), low=-15.0, high=15.0, at_once=at_once
        ).log_prob
        for at_once in (7, 1000)
    ]
    # Parts of a vectorised sum, ordered otherwise.
    np.testing.assert_allclose(*parts, atol=2e-5)


@pytest.mark.deep
def test_levels_have_the_integrals_of_the_density_between_their_bounds():
    c, _, _ = mixture("grey levels")
    bounds = (LEVELS[1:] + LEVELS[:-1]) / 2
    rows = jnp.broadcast_to(c, (17, 1, len(c)))
    level = jnp.arange(17)[:, None]
    measured = discrete_log_probs(mixture_head, rows, level, bounds=bounds, margin=0.4)
    means, stds, weights, _ = MIXTURES["grey levels"]
    cdf = [np.sum(weights * stats.norm.cdf(b, means, stds)) for b in bounds]
    exact = np.log(np.diff([0.0, *cdf, 1.0]))
    # Cells of one standard deviation: the quartic of the score errs by 1.4e-4 in their mass.
    np.testing.assert_allclose(measured.log_prob[:, 0], exact, atol=2e-4)
    # Every level has its share: in float32 17 of them sum to 1.
    assert float(jnp.sum(jnp.exp(measured.log_prob))) == pytest.approx(1, abs=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("name", [pytest.param("normal", marks=pytest.mark.slow), "far apart"])
def test_quantiles_invert_the_distribution_function(name):
    c, _, limit = mixture(name)
    means, stds, weights, _ = MIXTURES[name]
    v = np.linspace(0.001, 0.999, 201).astype(np.float32)
    ends = jnp.float32(-limit), jnp.float32(limit)
    table = adaptive_table(mixture_head, c, *ends)
    u = np.asarray(jax.vmap(lambda v: quantile(table, v))(jnp.asarray(v)))
    back = np.sum(weights * stats.norm.cdf(u[:, None], means, stds), axis=1)
    # The density is linear in a quarter of a cell; its mass is about 1 / 100, the curvature in it
    # moves less than a hundredth of that.
    np.testing.assert_allclose(back, v, atol=1e-4)


@pytest.mark.deep
def test_levels_that_surprise_keep_their_logarithm():
    c, level = jnp.tile(jnp.array([-1.0, 4e-4]), (3, 1, 1)), jnp.array([[1], [3], [5]])
    bounds = (LEVELS[1:] + LEVELS[:-1]) / 2
    measured = discrete_log_probs(gaussian_head, c, level, bounds=bounds, margin=0.4)
    # A tail's mass is that of its nearer bound: log of Q(z), z standard deviations away.
    z = (bounds[np.array([0, 2, 4])] + 1) / 0.02
    # log p changes by tens of nats between the nodes of a cell, whose mass is that of its first.
    np.testing.assert_allclose(measured.log_prob[:, 0], stats.norm.logsf(z), rtol=1e-2)


def test_impossible_ranges_are_refused():
    c, x = jnp.array([[[0.0, 1.0]]]), jnp.zeros((1, 1))
    measure = functools.partial(conditional_log_probs, gaussian_head, c)
    for low, high in ((10.0, -10.0), (-10.0, np.inf)):
        with pytest.raises(ValueError, match="finite low < high"):
            measure(x, low=low, high=high)
    with pytest.raises(ValueError, match="at least 20 cells; got 10"):
        measure(x, num_cells=10)
    assert np.isinf(measure(x + np.nan).error[0, 0])
