# SPDX-License-Identifier: Apache-2.0
"""The probability-flow sampler against the closed-form flow of Gaussian data, and its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture
from scipy import stats

from scorejax.samplers.probability_flow import decode, encode, probability_flow_ode, solve_flow
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.slow import slow_where

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=10.0)]


def by_name(*by_default):
    """All SDEs; by default those named alone, for every solve takes two seconds to compile."""
    values = slow_where(lambda sde: sde.name not in by_default, SDES)
    return pytest.mark.parametrize("sde", values, ids=lambda sde: sde.name)


DATA = Gaussian(
    np.array([1.0, -0.5, 0.2]), np.array([[1.0, 0.3, 0.1], [0.3, 0.5, 0.0], [0.1, 0.0, 0.2]])
)


@pytest.mark.deep
@by_name("vp", "ve")
def test_decode_and_encode_are_the_closed_form_flow(x64, sde):
    # The solver bounds the error of a step by atol + rtol |x|; 50 steps whose errors the flow can
    # stretch by up to std(1) / std(t_min) on the way up give the allowance, relative to |z|.
    z = sde.sample_prior(jax.random.key(0), (4, 3))
    t_min = 0.01
    x, _ = jax.jit(lambda z: decode(DATA.score_fn(sde), z, sde=sde, t_min=t_min, rtol=1e-9,
                                    atol=1e-9))(z)  # fmt: skip
    np.testing.assert_allclose(x, DATA.flow_map(sde, z, sde.t_max, t_min), atol=1e-7)
    back, _ = jax.jit(lambda x: encode(DATA.score_fn(sde), x, sde=sde, t_min=t_min, rtol=1e-9,
                                       atol=1e-9))(x)  # fmt: skip
    np.testing.assert_allclose(back, z, atol=1e-6, rtol=1e-7)


@pytest.mark.deep
@by_name("ve")
def test_the_error_follows_the_tolerance(x64, sde):
    z = sde.sample_prior(jax.random.key(1), (8, 3))
    exact = DATA.flow_map(sde, z, sde.t_max, sde.sampling_t_min)
    errors, costs = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        solve = functools.partial(decode, sde=sde, rtol=tolerance, atol=tolerance)
        x, nfe = solve(DATA.score_fn(sde), z)
        errors.append(float(jnp.max(jnp.abs(x - exact))))
        costs.append(int(nfe.sum()))
    # Two decades of tolerance must bring more than one of accuracy, and cost something.
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10, errors
    assert costs[0] < costs[1] < costs[2]
    # 10 times the tolerance, in units of the data (their standard deviation is near 1).
    assert errors[2] < 1e-6


@pytest.mark.deep
@by_name("vp")
def test_encode_then_decode_returns_the_input_for_a_mixture(sde):
    data = GaussianMixture(
        np.array([0.3, 0.7]), np.array([[1.0, -1.0], [-0.5, 0.5]]), np.array([0.3, 0.5])
    )
    x = data.sample_at(jax.random.key(2), sde, sde.sampling_t_min, 32)
    score_fn = data.score_fn(sde)

    @jax.jit
    def round_trip(x):
        latent, nfe = encode(score_fn, x, sde=sde)
        return decode(score_fn, latent, sde=sde).x, nfe

    back, nfe = round_trip(x)
    # Ten times what rtol = atol = 1e-5 allow at |x| near 1, each way, float32 rounding below it;
    # errors made near t_max are shrunk on the way back for VE, and not for VP, where both grow
    # by the ratio of the local scales of the mixture: another factor of 10.
    np.testing.assert_allclose(back, x, atol=2e-3)
    assert np.all(np.asarray(nfe) > 6)


@by_name("ve")
def test_nfe_is_the_number_of_calls(sde):
    calls = []
    score_fn = DATA.score_fn(sde)

    def counted(x, t):
        jax.debug.callback(lambda t: calls.append(float(t[0])), t)
        return score_fn(x, t)

    z = sde.sample_prior(jax.random.key(3), (1, 3))
    _, nfe = jax.block_until_ready(decode(counted, z, sde=sde))
    jax.effects_barrier()
    assert len(calls) == int(nfe[0])
    assert min(calls) >= sde.sampling_t_min * (1 - 1e-6) and max(calls) <= sde.t_max


@pytest.mark.deep
def test_denoising_costs_one_more_evaluation():
    sde = SDES[0]
    z = sde.sample_prior(jax.random.key(3), (2, 3))
    _, plain = decode(DATA.score_fn(sde), z, sde=sde)
    _, denoised = decode(DATA.score_fn(sde), z, sde=sde, denoise=True)
    np.testing.assert_array_equal(denoised, plain + 1)


@pytest.mark.deep
def test_a_solve_that_runs_out_of_steps_is_nan_and_its_batch_mates_are_not():
    sde = VESDE(sigma_max=50.0)
    score_fn = DATA.score_fn(sde)
    z = sde.sample_prior(jax.random.key(4), (32, 3))
    whole, nfe = decode(score_fn, z, sde=sde)
    steps = np.asarray(nfe - 1) // 6
    limit = int(np.sort(steps)[16])
    assert steps.max() > limit, "the test needs rows of different cost"
    cut, _ = decode(score_fn, z, sde=sde, max_steps=limit)
    np.testing.assert_array_equal(np.isnan(cut).all(axis=1), steps > limit)
    np.testing.assert_array_equal(np.isnan(cut).any(axis=1), steps > limit)
    np.testing.assert_array_equal(cut[steps <= limit], whole[steps <= limit])


def test_a_row_whose_score_turns_nan_is_nan_at_once_and_alone():
    sde = VPSDE()
    score_fn = DATA.score_fn(sde)
    z = sde.sample_prior(jax.random.key(5), (4, 3)).at[3].set(jnp.nan).at[1].set(9.0)
    broken = lambda x, t: jnp.where((x[:, :1] > 3) & (t[:, None] < 0.5), jnp.nan, score_fn(x, t))
    # Row 1 starts nine standard deviations out, so that it is beyond 3 when t falls below 0.5.
    solve = jax.jit(lambda z: decode(broken, z, sde=sde))
    x, nfe = solve(z)
    np.testing.assert_array_equal(np.isnan(x).any(axis=1), [False, True, False, True])
    assert nfe.max() < 600  # not the 24577 of max_steps
    # The same program, so to the last bit: without the two, the others are what they were.
    calm, _ = solve(z.at[1::2].set(0.0))
    assert np.isfinite(calm).all()
    np.testing.assert_array_equal(x[::2], calm[::2])


@pytest.mark.deep
@by_name("vp")
def test_a_row_does_not_depend_on_its_batch_mates(x64, sde):
    score_fn = DATA.score_fn(sde)
    z = sde.sample_prior(jax.random.key(6), (3, 3))
    solve = jax.jit(lambda z: decode(score_fn, z, sde=sde))
    together, nfe = solve(z)
    other, other_nfe = solve(z.at[1:].multiply(3.0))
    # Same shapes, same program: to the last bit.
    np.testing.assert_array_equal(together[0], other[0])
    assert nfe[0] == other_nfe[0]
    alone, _ = solve(z[:1])
    # Another batch size is another program, whose products may round otherwise: some 50 steps of
    # 1e-16, amplified by the flow. In float32 the same rounding moves the accepted steps as well.
    np.testing.assert_allclose(together[:1], alone, atol=1e-9)


@pytest.mark.deep
@by_name("vp")
def test_data_of_unit_variance_whose_flow_stands_still(sde):
    # VP leaves N(0, I) as it is: a solver that divides by the size of the drift would fail here.
    data = Gaussian.isotropic(0.0, 1.0, 4)
    z = sde.sample_prior(jax.random.key(7), (3, 4))
    x, _ = decode(data.score_fn(sde), z, sde=sde)
    # sub-VP stretches by std ratios; 10 steps of 1e-5 each, growing by at most |z| < 30 for VE.
    exact = data.flow_map(sde, z, sde.t_max, sde.sampling_t_min)
    np.testing.assert_allclose(x, exact, atol=1e-3 if sde.name != "subvp" else 5e-3)


@pytest.mark.deep
@by_name("ve")
def test_samples_of_a_mixture_have_its_law(sde):
    # False alarms: three SDEs, two coordinates and two diagonals, so 12 tests at 1e-6 each.
    data = GaussianMixture(
        np.array([0.3, 0.7]), np.array([[1.0, -1.0], [-0.5, 0.5]]), np.array([0.3, 0.5])
    )
    sample = lambda rng: probability_flow_ode(rng, data.score_fn(sde), (2000, 2), sde=sde).x
    x = np.asarray(jax.jit(sample)(jax.random.key(8)))
    truth = np.asarray(data.sample_at(jax.random.key(9), sde, sde.sampling_t_min, 20_000))
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        assert stats.ks_2samp(x @ direction, truth @ direction).pvalue > 1e-6


@pytest.mark.deep
def test_solving_there_and_back_between_any_two_times_is_the_identity(x64):
    sde = SDES[1]
    x = jax.random.normal(jax.random.key(10), (2, 3))
    there, _ = solve_flow(DATA.score_fn(sde), x, 0.2, 0.7, sde=sde, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(there, DATA.flow_map(sde, x, 0.2, 0.7), atol=1e-7)
    back, _ = solve_flow(DATA.score_fn(sde), there, 0.7, 0.2, sde=sde, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back, x, atol=1e-7)
