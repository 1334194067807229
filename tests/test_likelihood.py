# SPDX-License-Identifier: Apache-2.0
"""Likelihoods against closed forms; divergences against the Jacobian; what a failed row returns."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.extend.core import jaxprs_in_params
from scipy import stats

from scorejax import likelihood
from scorejax.sdes import VESDE, VPSDE, SubVPSDE, probability_flow
from tests.oracles import Gaussian, GaussianMixture
from tests.slow import slow_where

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=10.0)]
RNG = jax.random.key(0)


def correlated_gaussian(dim):
    root = np.random.default_rng(0).normal(size=(dim, dim)) / dim**0.5
    return Gaussian(np.linspace(-1, 1, dim), 0.2 * root @ root.T + 0.05 * np.eye(dim))


def mixture(dim):
    means = np.random.default_rng(1).uniform(-1, 1, size=(3, dim))
    return GaussianMixture(np.array([0.5, 0.3, 0.2]), means, np.array([0.3, 0.5, 0.7]))


def by_name(*by_default):
    """All SDEs; by default those named alone, for every solve takes two seconds to compile."""
    values = slow_where(lambda sde: sde.name not in by_default, SDES)
    return pytest.mark.parametrize("sde", values, ids=lambda sde: sde.name)


DATA = {"isotropic": Gaussian.isotropic(0.3, 0.5, 4), "correlated": correlated_gaussian(4)}


def solve(sde, data, x, **options):
    options = {"divergence": likelihood.exact, **options}
    log_prob = jax.jit(lambda x: likelihood.log_prob(RNG, sde, data.score_fn(sde), x, **options))
    return log_prob(x)


def mixture_log_prob(sde, data, x, latent):
    """The flow with the true prior in place of p_{t_max}, given where it takes x."""
    start, end = (jnp.full(len(x), t, x.dtype) for t in (sde.t_min, sde.t_max))
    change = data.log_prob(sde, x, start) - data.log_prob(sde, latent, end)
    return sde.prior_log_prob(latent) + change


@by_name("vp", "subvp", "ve")
@pytest.mark.parametrize("name", slow_where(lambda name: name == "isotropic", DATA))
def test_log_prob_of_gaussian_data_is_the_closed_form(sde, name):
    data = DATA[name]
    x = data.sample(jax.random.key(1), 16)
    result = solve(sde, data, x)
    # What is asked of rtol = 1e-5: 1e-4 nats per dimension.
    expected = data.flow_log_prob(sde, x, sde.t_min)
    np.testing.assert_allclose(result.log_prob, expected, atol=1e-4 * data.dim, rtol=0)
    # Ten times the solver's tolerance, for a path of several units.
    flow = data.flow_map(sde, x, sde.t_min, sde.t_max)
    np.testing.assert_allclose(result.latent, flow, rtol=1e-4, atol=1e-4)
    assert result.success.all() and (result.standard_error == 0).all()


@pytest.mark.deep
@by_name("vp", "ve")
def test_log_prob_of_a_mixture_is_the_closed_form(sde):
    data = mixture(8)
    x = data.sample(jax.random.key(1), 16)
    result = solve(sde, data, x)
    expected = mixture_log_prob(sde, data, x, result.latent)
    np.testing.assert_allclose(result.log_prob, expected, atol=1e-4 * data.dim, rtol=0)


@pytest.mark.deep
@by_name("ve")
def test_a_smaller_tolerance_gives_a_smaller_error(sde, x64):
    data = DATA["correlated"]
    x = data.sample(jax.random.key(1), 8)
    expected = data.flow_log_prob(sde, x, sde.t_min)
    loose, tight = (
        np.abs(solve(sde, data, x, rtol=tol, atol=tol).log_prob - expected).max()
        for tol in (1e-3, 1e-7)
    )
    assert tight < loose / 100 and tight < 1e-5


@pytest.mark.deep
def test_subvp_is_accurate_where_its_std_is_a_millionth():
    # Data of std 1e-3 lie between std(t_min) = 1e-6 and one: the score reaches 1e3 near t_min.
    sde, data = SubVPSDE(), Gaussian.isotropic(0.3, 1e-3, 4)
    x = data.sample(jax.random.key(1), 16)
    result = solve(sde, data, x, rtol=1e-6, atol=1e-6)
    expected = data.flow_log_prob(sde, x, sde.t_min)
    # x - 0.3 is known to 3e-8 of 1e-3: 3e-5 standard deviations, times |x - 0.3| / std <= 3.
    np.testing.assert_allclose(result.log_prob, expected, atol=1e-4 * data.dim, rtol=0)


def drift_at(sde, data, t):
    drift = probability_flow(sde, data.score_fn(sde))
    return lambda x: drift(x[None], jnp.full(1, t, x.dtype))[0]


@pytest.mark.parametrize("estimator", [likelihood.hutchinson, likelihood.gaussian_hutchinson])
@pytest.mark.deep
def test_probes_are_unbiased_with_the_known_variance(estimator, x64):
    drift_fn, x = drift_at(VPSDE(), mixture(8), 0.3), mixture(8).sample(jax.random.key(1), 1)[0]
    jacobian = np.asarray(jax.jacfwd(drift_fn)(x))
    num_probes = 10_000
    _, draws = estimator(RNG, x, num_probes=num_probes)(drift_fn, x)
    assert draws.shape == (num_probes,)
    # Four standard errors: a false alarm in 16 000.
    assert abs(draws.mean() - np.trace(jacobian)) < 4 * draws.std() / math.sqrt(num_probes)
    symmetric = (jacobian + jacobian.T) / 2
    variance = 2 * np.sum(symmetric**2)
    if estimator is likelihood.hutchinson:
        variance -= 2 * np.sum(np.diag(symmetric) ** 2)
    # The variance of a quadratic form of 1e4 probes: kurtosis up to 15 gives 4 % at one s.e.
    np.testing.assert_allclose(draws.var(), variance, rtol=0.15)


@pytest.mark.parametrize("num_tangents", [4, 16])
def test_exact_divergence_and_drift_of_an_image(x64, num_tangents):
    x = jax.random.normal(RNG, (2, 3, 1))
    drift_fn = lambda x: jnp.sin(x) * jnp.sum(x**2)
    drift, divergence = likelihood.exact(RNG, x, num_tangents=num_tangents)(drift_fn, x)
    expected = np.trace(jax.jacrev(drift_fn)(x).reshape(6, 6))
    np.testing.assert_allclose(divergence, expected, rtol=1e-12)
    np.testing.assert_array_equal(drift, drift_fn(x))


def sizes_of_results(jaxpr):
    """Numbers of entries of all arrays that a program computes, in its loops as well."""
    for equation in jaxpr.eqns:
        yield from (math.prod(result.aval.shape) for result in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes_of_results(inner)


@pytest.mark.parametrize("num_tangents", [1, 4, 16])
def test_the_exact_divergence_holds_few_tangents_at_once(num_tangents):
    dim, width = 48, 200
    into, out = np.ones((dim, width), np.float32), np.ones((width, dim), np.float32)
    drift_fn = lambda x: jnp.tanh(x @ into) @ out

    def divergence(x):
        return likelihood.exact(RNG, x, num_tangents=num_tangents)(drift_fn, x)

    program = jax.make_jaxpr(divergence)(jnp.zeros(dim)).jaxpr
    # The widest layer for each tangent of a chunk, where all at once would hold dim times that.
    assert max(sizes_of_results(program)) == num_tangents * width


def test_the_number_of_tangents_is_checked():
    with pytest.raises(ValueError, match="exact needs num_tangents >= 1; got 0"):
        likelihood.exact(RNG, jnp.zeros(3), num_tangents=0)


@pytest.mark.deep
def test_signs_are_exact_for_isotropic_gaussian_data():
    sde, data = VPSDE(), DATA["isotropic"]
    x = data.sample(jax.random.key(1), 4)
    estimated = solve(sde, data, x, divergence=likelihood.hutchinson)
    # Probe . c I probe = c d: only roundings of a sum of d terms differ, over 1e1 steps.
    np.testing.assert_allclose(estimated.log_prob, solve(sde, data, x).log_prob, atol=1e-4)
    assert np.isnan(estimated.standard_error).all()


@pytest.mark.deep
def test_standard_error_covers_the_exact_value():
    sde, data, rows = VPSDE(), mixture(8), 64
    x = data.sample(jax.random.key(1), rows)
    probes = functools.partial(likelihood.hutchinson, num_probes=16)
    estimated = solve(sde, data, x, divergence=probes)
    score = (estimated.log_prob - solve(sde, data, x).log_prob) / estimated.standard_error
    # Student's t with 15 degrees of freedom, 64 independent rows: false alarm 1e-5.
    assert stats.kstest(np.asarray(score), stats.t(15).cdf).pvalue > 1e-5


@pytest.mark.deep
def test_a_row_does_not_depend_on_its_batch():
    sde, data = VESDE(sigma_max=10.0), mixture(4)
    x = data.sample(jax.random.key(1), 5) * jnp.array([1.0, 1.0, 30.0, 1.0, 0.0])[:, None]
    whole = solve(sde, data, x, divergence=likelihood.hutchinson)
    part = solve(sde, data, x[:2], divergence=likelihood.hutchinson)
    np.testing.assert_array_equal(whole.steps[:2], part.steps)
    # Vectorised code may round differently for another batch size: 1e-6 of terms of about 10 nats.
    np.testing.assert_allclose(whole.log_prob[:2], part.log_prob, atol=1e-5)
    assert whole.steps[2] > whole.steps[0]


@pytest.mark.deep
@by_name("vp")
def test_nfe_is_the_number_of_calls(sde):
    data, calls = mixture(4), []
    score_fn = data.score_fn(sde)

    def count(t):
        calls.append(t)
        return t

    def counted(x, t):
        t = io_callback(count, jax.ShapeDtypeStruct(t.shape, t.dtype), t)
        return score_fn(x, t)

    # Far from the data the first step is too long, so that rejected steps are counted too.
    x = 30 * data.sample(jax.random.key(1), 1)
    nfe = likelihood.log_prob(RNG, sde, counted, x, divergence=likelihood.exact).nfe
    assert nfe.tolist() == [len(calls)]


@pytest.mark.deep
def test_only_unfinished_rows_are_nan():
    sde, data = VPSDE(), mixture(4)
    x = data.sample(jax.random.key(1), 4)
    x = x.at[1, 0].set(jnp.nan).at[2].mul(30.0)
    easy = solve(sde, data, x[jnp.array([0, 3])])
    result = solve(sde, data, x, max_steps=int(easy.steps.max()))
    np.testing.assert_array_equal(result.success, [True, False, False, True])
    for field in (result.log_prob, result.standard_error, result.latent.sum(-1)):
        np.testing.assert_array_equal(np.isfinite(field), result.success)


@pytest.mark.deep
def test_a_score_that_is_nan_ends_soon_and_is_reported():
    data, sde = mixture(4), VPSDE()
    score_fn = lambda x, t: jnp.where(t[:, None] > 0.5, jnp.nan, data.score_fn(sde)(x, t))
    x = data.sample(jax.random.key(1), 2)
    result = likelihood.log_prob(RNG, sde, score_fn, x)
    assert not result.success.any() and np.isnan(result.log_prob).all()
    assert result.steps.max() < 200


@pytest.mark.parametrize("bad", [{"rtol": 0.0}, {"atol": -1.0}, {"max_steps": 0}])
def test_impossible_tolerances_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(
        ValueError, match=f"positive rtol, atol and max_steps; got .*{name}={value}"
    ):
        solve(VPSDE(), mixture(4), jnp.zeros((1, 4)), **bad)


def test_bits_per_dim_adds_the_known_offsets():
    bits = functools.partial(likelihood.bits_per_dim, jnp.zeros(1), 10)
    assert bits(levels=256, data_range=(-1.0, 1.0)) == 7
    assert bits(levels=256, data_range=(0.0, 1.0)) == 8
    np.testing.assert_allclose(bits(levels=17, data_range=(0.0, 1.0)), math.log2(17), rtol=1e-7)
    nats = jnp.array([-10 * math.log(2)])
    np.testing.assert_allclose(
        likelihood.bits_per_dim(nats, 10, levels=2, data_range=(0.0, 1.0)), 2.0, rtol=1e-6
    )


def test_bits_do_not_depend_on_the_range_of_the_model():
    unit = 0.5 + 0.1 * jax.random.normal(RNG, (5, 6))
    for low, high in [(0.0, 1.0), (-1.0, 1.0), (-3.0, 2.0)]:
        span = high - low
        x = low + span * unit
        log_prob = stats.norm.logpdf(x, low + span * 0.5, span * 0.1).sum(1)
        bits = likelihood.bits_per_dim(jnp.asarray(log_prob), 6, levels=17, data_range=(low, high))
        expected = -stats.norm.logpdf(unit, 0.5, 0.1).mean(1) / math.log(2) + math.log2(17)
        np.testing.assert_allclose(bits, expected, atol=1e-5)  # roundings of x to 2e-7 / 0.1


def test_bits_per_dim_names_an_impossible_range():
    with pytest.raises(ValueError, match=r"increasing data_range; .* data_range=\(1.0, -1.0\)"):
        likelihood.bits_per_dim(jnp.zeros(1), 10, levels=256, data_range=(1.0, -1.0))


def test_importance_weighting_closes_the_gap_to_the_discrete_probability(x64):
    # One pixel of 4 levels under N(0.4, 0.2^2): the probability of a level is that of its cell.
    density = stats.norm(0.4, 0.2)
    levels = np.arange(4)
    exact = -np.log2(density.cdf((levels + 1) / 4) - density.cdf(levels / 4))
    draws = (levels + np.random.default_rng(0).random((20_000, 4))) / 4
    bits = jax.vmap(
        functools.partial(likelihood.bits_per_dim, dim=1, levels=4, data_range=(0.0, 1.0))
    )(jnp.asarray(density.logpdf(draws)))
    mean, weighted = bits.mean(axis=0), likelihood.importance_weighted(bits, 1)
    # Five standard errors of the mean of the densities: one false alarm in 400 000 at four levels.
    ratio = 2.0 ** -np.asarray(bits) / 2.0**-exact
    error = 5 * ratio.std(axis=0) / np.sqrt(len(bits)) / np.log(2)
    assert np.all(np.abs(weighted - exact) < error)
    # What the mean leaves open, where the density is not nearly flat over the cell.
    steep = np.array([0, 2, 3])
    assert np.all((mean - exact)[steep] > 4 * error[steep])
    np.testing.assert_allclose(likelihood.importance_weighted(bits[:1], 1), bits[0], rtol=1e-12)


def test_importance_weighting_is_in_bits_per_dimension(x64):
    bits = jnp.asarray(np.random.default_rng(0).normal(3.0, 0.1, (5, 2)))
    probability = 2.0 ** (-64 * np.asarray(bits))
    expected = -np.log2(probability.mean(axis=0)) / 64
    np.testing.assert_allclose(likelihood.importance_weighted(bits, 64), expected, rtol=1e-12)
