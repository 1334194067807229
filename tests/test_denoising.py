# SPDX-License-Identifier: Apache-2.0
"""Denoising losses against their known minima, and the time samplers against quadrature."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.objectives import denoising
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.parameterize import ddpm_marginals
from scorejax.random import row_keys, split
from scorejax.schedules import geometric_sigmas
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.oracles import Gaussian
from tests.slow import slow_subvp

# Away from t = 0 the likelihood weighting, of order 1 / t, has a variance that 2e4 draws can tame.
SDES = [VPSDE(t_min=0.01), SubVPSDE(t_min=0.01), VESDE(t_min=0.01)]
WEIGHTINGS = [denoising.variance_weighting, denoising.likelihood_weighting]
SAMPLERS = {
    "uniform": denoising.uniform_times,
    "likelihood": denoising.likelihood_times,
    "low_discrepancy": functools.partial(denoising.uniform_times, draw=denoising.low_discrepancy),
}
DATA_STD, DIM = 0.5, 4
DATA = Gaussian.isotropic(0.3, DATA_STD, DIM)


def assert_mean(draws, expected):
    """Fails by chance once in 16 000 times: four standard errors."""
    draws = np.asarray(draws, np.float64)
    assert abs(draws.mean() - expected) < 4 * draws.std() / np.sqrt(len(draws))


def bayes_loss(sde, weighting, num=20_001):
    """Loss per dimension at the true score: the noise that x_t does not reveal, by quadrature."""
    t = np.geomspace(sde.t_min, sde.t_max, num)
    scale, std = (np.asarray(v) for v in sde.marginal(jnp.asarray(t)))
    signal = scale**2 * DATA_STD**2
    loss = np.asarray(weighting(sde, jnp.asarray(t))) / std**2 * signal / (signal + std**2)
    return np.trapezoid(loss, t) / (sde.t_max - sde.t_min)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("sde", slow_subvp(SDES), ids=lambda s: s.name)
def test_loss_at_the_true_score_is_the_known_minimum(sde, weighting, sampler):
    x = DATA.sample(jax.random.key(0), 20_000)
    loss = denoising.denoising_score_matching(
        DATA.score_fn(sde),
        sde,
        jax.random.key(1),
        x,
        weighting=weighting,
        time_sampler=SAMPLERS[sampler],
    )
    assert_mean(loss, bayes_loss(sde, weighting))


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("sde", slow_subvp(SDES), ids=lambda s: s.name)
def test_every_weighting_is_stationary_at_the_true_score(sde, weighting):
    x = DATA.sample(jax.random.key(0), 20_000)
    score_fn = DATA.score_fn(sde)

    def loss(factor):
        scaled = lambda x, t: factor * score_fn(x, t)
        return denoising.denoising_score_matching(
            scaled, sde, jax.random.key(1), x, weighting=weighting
        )

    _, slope = jax.jvp(loss, (1.0,), (1.0,))
    assert_mean(slope, 0.0)


def test_half_sum_is_half_the_dimension_times_the_mean():
    x = DATA.sample(jax.random.key(0), 8)
    loss = functools.partial(
        denoising.denoising_score_matching, DATA.score_fn(SDES[0]), SDES[0], jax.random.key(1), x
    )
    # One rounding of the division by four.
    mean, half_sum = loss(), loss(reduction=denoising.half_sum)
    np.testing.assert_allclose(half_sum, DIM / 2 * mean, rtol=1e-6)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda s: s.name)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("t", [1e-5, 1.0])
def test_loss_and_gradient_are_finite_and_accurate_at_both_ends(sde, weighting, t):
    x, noise = jax.random.normal(jax.random.key(0), (2, 8, DIM))

    def loss(slope, dtype):
        t_, x_, noise_ = jnp.full((8,), t, dtype), x.astype(dtype), noise.astype(dtype)
        score_fn = lambda x, t: slope * x
        return denoising.denoising_error(score_fn, sde, t_, noise_, x_, weighting=weighting).mean()

    value_and_grad = jax.value_and_grad(loss)
    single = value_and_grad(jnp.float32(-0.7), jnp.float32)
    with jax.enable_x64(True):
        double = value_and_grad(jnp.float64(-0.7), jnp.float64)
    # About ten roundings of 6e-8 each, and t itself is rounded (1 - B'/B stays below 2).
    np.testing.assert_allclose(single, double, rtol=2e-6)


def test_likelihood_times_invert_the_closed_form_of_vp(x64):
    sde, u = VPSDE(), jnp.linspace(0.0, 1.0, 101)
    t, weight = denoising.likelihood_times(jax.random.key(0), sde, 101, draw=lambda rng, shape: u)
    ends = jnp.array([sde.t_min, sde.t_max])
    first, last = np.log(np.expm1(sde.integrated_beta(ends)))
    integral = np.log1p(np.exp(first + (last - first) * np.asarray(u)))
    slope = sde.beta_max - sde.beta_min
    expected = 2 * integral / (sde.beta_min + np.sqrt(sde.beta_min**2 + 2 * slope * integral))
    # Bisection stops at one part in 2^53 of t_max / t_min = 1e5.
    np.testing.assert_allclose(t, expected, rtol=1e-10)
    density = np.asarray(sde.beta(t)) / -np.expm1(-integral) / (last - first)
    np.testing.assert_allclose(weight, 1 / density / (sde.t_max - sde.t_min), rtol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda s: s.name)
def test_likelihood_times_are_accurate_in_single_precision(sde):
    u = np.linspace(0.0, 1.0, 101)
    draw = lambda rng, shape: jnp.asarray(u)
    single = denoising.likelihood_times(jax.random.key(0), sde, 101, draw=draw)
    with jax.enable_x64(True):
        double = denoising.likelihood_times(jax.random.key(0), sde, 101, draw=draw)
    # The target, up to 28 nats in size, is rounded at 1e-6 of a nat; d log t / d log ratio <= 1,
    # except for VE, where t is linear in it.
    np.testing.assert_allclose(single.t, double.t, rtol=1e-5, atol=1e-6 if sde.name == "ve" else 0)
    np.testing.assert_allclose(single.weight, double.weight, rtol=1e-5)


def test_times_that_begin_at_zero_cannot_be_weighted_by_likelihood():
    with pytest.raises(ValueError, match="likelihood_times needs t_min > 0; got t_min=0"):
        denoising.likelihood_times(jax.random.key(0), VPSDE(t_min=0.0), 4)


def test_likelihood_times_reduce_the_variance_of_the_likelihood_weighting():
    sde, x = VPSDE(), DATA.sample(jax.random.key(0), 20_000)
    loss = functools.partial(
        denoising.denoising_score_matching,
        DATA.score_fn(sde),
        sde,
        jax.random.key(1),
        x,
        weighting=denoising.likelihood_weighting,
    )
    assert 10 * loss(time_sampler=denoising.likelihood_times).std() < loss().std()


def test_low_discrepancy_numbers_are_even_and_each_uniform():
    draws = jax.vmap(lambda key: denoising.low_discrepancy(key, (8,)))(
        jax.random.split(jax.random.key(0), 2000)
    )
    gaps = np.diff(np.sort(draws, axis=1), axis=1)
    np.testing.assert_allclose(gaps, 1 / 8, atol=2e-7)  # one rounding of a number below 1
    for column in np.asarray(draws).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-5  # eight columns: false alarm 1e-4
    # The mean of t over a batch: (1/12) / 8^2 in place of (1/12) / 8 for independent draws.
    np.testing.assert_allclose(
        np.mean(draws, axis=1).var(), 1 / 768, rtol=0.1
    )  # five standard errors


def test_discrete_losses_at_the_true_score_are_their_known_minima():
    num_scales, x = 10, DATA.sample(jax.random.key(0), 20_000)
    vp, ve = VPSDE(beta_max=3.0), VESDE()

    scale, std = (jnp.asarray(table, jnp.float32) for table in ddpm_marginals(vp, num_scales))
    bayes = scale**2 * DATA_STD**2 / (scale**2 * DATA_STD**2 + std**2)

    def noise_network(x, label):
        a, s = (table[label.astype(jnp.int32)][:, None] for table in (scale, std))
        return s * (x - 0.3 * a) / (a**2 * DATA_STD**2 + s**2)

    loss = denoising.ddpm_loss(noise_network, vp, jax.random.key(1), x, num_scales=num_scales)
    assert_mean(loss, bayes.mean())

    sigmas = jnp.asarray(geometric_sigmas(ve.sigma_min, ve.sigma_max, num_scales), jnp.float32)
    level_network = lambda x, label: (0.3 - x) / (DATA_STD**2 + sigmas[label][:, None] ** 2)
    loss = denoising.smld_loss(level_network, ve, jax.random.key(1), x, num_scales=num_scales)
    assert_mean(loss, DIM / 2 * (DATA_STD**2 / (DATA_STD**2 + sigmas**2)).mean())


def test_the_training_loss_is_the_batch_mean_and_reaches_the_parameters():
    sde, x = VPSDE(), DATA.sample(jax.random.key(0), 64)
    state = SimpleNamespace(model_state={"constants": {"shift": jnp.float32(0.25)}})
    seen = {}

    def apply_fn(variables, x, label, *, dropout_rng):
        seen.update(dropout_rng=dropout_rng)
        shift = variables["constants"]["shift"]
        return variables["params"]["slope"] * x + shift

    def example_loss(network, rng, x):
        score_fn = lambda x, t: -network(x, t)
        return denoising.denoising_score_matching(score_fn, sde, rng, x)

    loss_fn = make_loss_fn(example_loss, apply_fn)
    rng, params = jax.random.key(1), {"slope": jnp.float32(0.5)}
    batch = {"image": x, "rng": row_keys(jax.random.key(2), 64)}
    loss, aux = loss_fn(params, state, rng, batch)

    loss_rng, dropout_rng = split(batch["rng"])
    score_fn = lambda x, t: -(0.5 * x + 0.25)
    expected = denoising.denoising_score_matching(score_fn, sde, loss_rng, x).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)  # the same sums, fused differently
    assert aux.metrics == {"loss": loss} and aux.model_state is state.model_state
    np.testing.assert_array_equal(*map(jax.random.key_data, (seen["dropout_rng"], dropout_rng)))
    gradient = jax.grad(lambda p: loss_fn(p, state, rng, {"image": x})[0])(params)
    assert gradient["slope"] != 0
