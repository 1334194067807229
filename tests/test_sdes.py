# SPDX-License-Identifier: Apache-2.0
"""The SDEs against the differential equations that define them and against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from scorejax.sdes import VESDE, VPSDE, SubVPSDE, probability_flow, reverse_drift, table_index
from tests.slow import deep_where

SDES = [VPSDE(), SubVPSDE(), VESDE()]
by_name = pytest.mark.parametrize("sde", SDES, ids=lambda sde: sde.name)


@by_name
def test_the_marginal_solves_its_moment_equations(x64, sde):
    # a' = f a and (std^2)' = 2 f std^2 + g^2, where the drift is f x. Exact, so float64 rounding,
    # relative to the largest term of each equation.
    t = jnp.geomspace(1e-5, 1.0, 50)
    (scale, std), (slopes, std_slopes) = jax.jvp(sde.marginal, (t,), (jnp.ones_like(t),))
    rate = sde.drift(jnp.ones((50, 1)), t)[:, 0]
    np.testing.assert_allclose(slopes, rate * scale, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        2 * std * std_slopes, 2 * rate * std**2 + sde.diffusion(t) ** 2, rtol=1e-10, atol=1e-14
    )


@by_name
def test_float32_marginals_are_accurate_down_to_t_min(sde):
    # A few roundings of 6e-8, times log(5000) = 8.5 in the exponent for VE. Forming 1 - exp(-small)
    # would be wrong by 1e-2 at t = 1e-5.
    t = np.geomspace(1e-5, 1.0, 100)
    single = sde.marginal(jnp.asarray(t, jnp.float32))
    with jax.enable_x64(True):
        double = sde.marginal(jnp.asarray(t.astype(np.float32), jnp.float64))
    for ours, exact in zip(single, double, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=2e-6)


@pytest.mark.parametrize(
    ("sde", "t", "scale", "std"),
    [
        (VPSDE(), 1e-5, 0.99999949950, 1.0004971e-3),
        (VPSDE(), 1e-3, 0.99994502651, 0.010485416),
        (VPSDE(), 0.1, 0.94672179882, 0.322052536),
        (VPSDE(), 0.5, 0.28118288080, 0.959654202),
        (VPSDE(), 1.0, 0.00657158649, 0.999978407),
        (SubVPSDE(), 1e-5, 0.99999949950, 1.0009945e-6),
        (SubVPSDE(), 1e-3, 0.99994502651, 1.0994396e-4),
        (SubVPSDE(), 0.1, 0.94672179882, 0.103717836),
        (SubVPSDE(), 0.5, 0.28118288080, 0.920936188),
        (SubVPSDE(), 1.0, 0.00657158649, 0.999956814),
        (VESDE(), 1e-5, 1.0, 0.0100008518),
        (VESDE(), 1e-3, 1.0, 0.0100855357),
        (VESDE(), 0.1, 1.0, 0.0234367291),
        (VESDE(), 0.5, 1.0, 0.707106781),
        (VESDE(), 1.0, 1.0, 50.0),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_known_marginals(x64, sde, t, scale, std):
    # The numbers are printed to eight or nine digits.
    ours = sde.marginal(jnp.asarray([t]))
    np.testing.assert_allclose(np.ravel(ours), [scale, std], rtol=1e-7)


@pytest.mark.parametrize(
    "sde", deep_where(lambda sde: sde.name != "vp", SDES), ids=lambda sde: sde.name
)
@pytest.mark.deep
def test_simulating_the_sde_gives_the_marginal(sde):
    # Euler-Maruyama with n = 1000 steps on 10^4 paths. The mean of 1 is off by three standard
    # errors of 1e-2 std, and the spread by 3 / sqrt(2e4) = 2 %, both beside the bias of order 1/n:
    # the diffusion of VE grows by 0.85 % a step and is taken at its left end, 1 % of std in all.
    num_steps, num_paths = 1000, 10_000
    step = 1 / num_steps
    start_std = float(sde.marginal(jnp.zeros(1))[1][0])
    start_rng, path_rng = jax.random.split(jax.random.key(0))
    x = 1 + start_std * jax.random.normal(start_rng, (num_paths, 1))

    def move(x, inputs):
        time, key = inputs
        t = jnp.full((num_paths,), time)
        noise = jax.random.normal(key, x.shape)
        return x + sde.drift(x, t) * step + sde.diffusion(t)[:, None] * step**0.5 * noise, None

    times = jnp.arange(num_steps) * step
    x, _ = jax.jit(lambda x, keys: jax.lax.scan(move, x, (times, keys)))(
        x, jax.random.split(path_rng, num_steps)
    )
    scale, std = (float(value[0]) for value in sde.marginal(jnp.ones(1)))
    assert abs(float(x.mean()) - scale) < 0.03 * std + step
    assert abs(float(x.std()) / std - 1) < 0.03


@pytest.mark.deep
def test_the_discrete_vp_chain_tends_to_the_sde(x64):
    products = []
    for num_steps in (1000, 2000, 4000):
        t = jnp.arange(num_steps) / (num_steps - 1)
        products.append(float(jnp.prod(VPSDE().transition(t, num_steps)[0] ** 2)))
    limit = float(VPSDE().marginal(jnp.ones(1))[0][0] ** 2)
    np.testing.assert_allclose([products[0], limit], [4.0358e-5, 4.3186e-5], rtol=1e-4)
    gaps = limit - np.array(products)
    # First order in 1/n: the gap halves, up to the next order, which is 3 % here.
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 2, rtol=0.05)


def test_the_ve_chain_adds_up_to_its_marginal(x64):
    sde, num_steps = VESDE(), 200
    t = jnp.arange(num_steps) / (num_steps - 1)
    _, std = sde.transition(t, num_steps)
    np.testing.assert_allclose(jnp.cumsum(std**2), sde.sigma(t) ** 2, rtol=1e-12)


@pytest.mark.parametrize("t_min", [1e-5, 1e-3])
@pytest.mark.parametrize("num_steps", [10, 500, 1000])
def test_float32_grid_times_find_their_own_chain_step(num_steps, t_min):
    # The grid lies up to num_steps * t_min above whole numbers, less than one for these sizes.
    grid = jnp.asarray(np.linspace(1, t_min, num_steps), jnp.float32)
    expected = np.arange(num_steps)[::-1]
    np.testing.assert_array_equal(table_index(grid, num_steps), expected)


@by_name
def test_prior_log_prob_is_the_normal_density(sde):
    z = sde.sample_prior(jax.random.key(0), (5, 3))
    std = 50.0 if sde.name == "ve" else 1.0
    expected = jnp.sum(jax.scipy.stats.norm.logpdf(z, scale=std), axis=-1)
    np.testing.assert_allclose(sde.prior_log_prob(z), expected, rtol=1e-5)


@pytest.mark.deep
@by_name
def test_the_two_reverse_drifts_move_the_true_density_as_the_sde_does(x64, sde):
    # Fokker-Planck at a point: dp/dt = -div(F p) along the flow F, in log form
    # d/dt log p = -div F - F . score.
    data = Gaussian.isotropic(0.7, 0.4, 2)
    score = data.score_fn(sde)
    flow = probability_flow(sde, score)
    x, t = jax.random.normal(jax.random.key(1), (6, 2)), jnp.linspace(0.1, 0.9, 6)
    slope = jax.jvp(lambda t: data.log_prob(sde, x, t), (t,), (jnp.ones_like(t),))[1]
    single = lambda x, t: flow(x[None], t[None])[0]
    divergence = jax.vmap(lambda x, t: jnp.trace(jax.jacfwd(single)(x, t)))(x, t)
    expected = -divergence - jnp.sum(flow(x, t) * score(x, t), axis=-1)
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-10)
    half = (sde.drift(x, t) + reverse_drift(sde, score)(x, t)) / 2
    np.testing.assert_allclose(flow(x, t), half, rtol=1e-12, atol=1e-12)


@by_name
def test_another_horizon_is_the_same_process_run_shorter(x64, sde):
    # dx = f dt + g dw up to t_max: the chain of a shorter horizon has marginals of that horizon.
    short = type(sde)(t_max=0.5)
    t = jnp.linspace(1 / 4000, 0.5, 4000)
    scale, std = short.transition(t, 4000)
    log_scale = float(jnp.sum(jnp.log(scale)))
    expected = float(jnp.log(sde.marginal(jnp.asarray([0.5]))[0][0]))
    # The chain is first order in 1/n: 1e-3 relative at n = 4000.
    np.testing.assert_allclose(log_scale, expected, rtol=2e-3, atol=1e-12)
    variance = 0.0
    for a, b in zip(np.asarray(scale), np.asarray(std), strict=True):
        variance = a**2 * variance + b**2
    # sub-VP and VP: the variance as above; VE: exact.
    np.testing.assert_allclose(variance, sde.marginal(jnp.asarray([0.5]))[1][0] ** 2, rtol=2e-3)
    prior_std = float(jnp.exp(-short.prior_log_prob(jnp.zeros((1, 1)))[0])) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(prior_std, sde.sigma(0.5) if sde.name == "ve" else 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VESDE(sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0, sigma_max=1.0"),
        (lambda: VPSDE(beta_min=3.0, beta_max=2.0), "VPSDE needs 0 <= beta_min < beta_max"),
        (lambda: SubVPSDE(t_min=1.0), "SubVPSDE needs 0 <= t_min < t_max"),
        (lambda: VPSDE().transition(jnp.ones(1), 15), "num_steps=15 gives 1.33"),
        (lambda: VESDE().transition(jnp.ones(1), 1), "num_steps >= 2; got 1"),
        (lambda: SubVPSDE().ancestral_std(jnp.ones(1), 100), "take reverse_diffusion"),
    ],
)
def test_impossible_values_are_refused_by_name_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_time_of_no_noise_is_zero_though_beta_begins_at_zero():
    sde = VPSDE(beta_min=0.0, beta_max=20.0)
    t = jnp.array([0.0, 0.3, 1.0])
    scale, std = sde.marginal(t)
    # A few units of float32, through a square root and a logarithm.
    np.testing.assert_allclose(sde.time_of_sigma(std / scale), t, rtol=1e-5)
