# SPDX-License-Identifier: Apache-2.0
"""Few-step samplers: official numbers, measured orders, exact flows, and the law of samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, GaussianMixture
from scipy import stats

from scorejax.numerics import expand
from scorejax.preconditioning import denoiser_to_score_fn, noise_level
from scorejax.samplers.dpm_solver import dpm_solver_pp, sde_dpm_solver_pp
from scorejax.samplers.few_step import SIGMA_PATH, Churn, Path, edm_step, euler, follow, heun
from scorejax.schedules import geometric_sigmas, improved_ddpm_sigmas, rho_sigmas
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.slow import deep_where, slow_subvp

SDES = [VPSDE(), SubVPSDE(), VESDE(sigma_max=10.0)]
by_name = pytest.mark.parametrize("sde", slow_subvp(SDES), ids=lambda sde: sde.name)
MIXTURE = GaussianMixture(
    np.array([0.3, 0.7]), np.array([[1.0, -1.0], [-0.5, 0.5]]), np.array([0.3, 0.5])
)


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def analytic_denoiser(x, sigma):
    """The denoiser of the official runs, with x (b, h, w, c) and sigma (b,)."""
    sigma = expand(sigma, x)
    wave = 0.3 * sigma * jnp.sin(x / (1 + sigma))
    return (0.25 * x + wave + 0.02 * jnp.roll(x, 1, 2)) / (sigma**2 + 0.25)


EDM_GRID = rho_sigmas(0.002, 80.0, 6)
VE_GRID = geometric_sigmas(0.02, 100.0, 6)
CHURN = Churn(4.0, 0.05, 50.0, 1.003)
VARIANCE_PATH = Path(jnp.ones_like, jnp.sqrt, jnp.square)
"""The variable is the variance of the noise: a VE SDE of constant diffusion."""


def vp_grid():
    return np.asarray(noise_level(VPSDE(), jnp.linspace(1.0, 1e-3, 6)))


def vp_path():
    """The variable is the time of the VP SDE, and x is scaled as there: its probability flow."""
    along = lambda function: lambda t: function(t.reshape(-1)).reshape(t.shape)
    return Path(
        along(lambda t: VPSDE().marginal(t)[0]),
        along(lambda t: noise_level(VPSDE(), t)),
        along(VPSDE().time_of_sigma),
    )


RUNS = {  # grid, path, alpha of the correction, churn
    "edm_det": (lambda: EDM_GRID, SIGMA_PATH, 1.0, Churn()),
    "edm_churn": (lambda: EDM_GRID, SIGMA_PATH, 1.0, CHURN),
    "abl_edm": (lambda: EDM_GRID, SIGMA_PATH, 1.0, Churn()),
    "abl_euler": (lambda: EDM_GRID, SIGMA_PATH, None, Churn()),
    "abl_alpha": (lambda: EDM_GRID, SIGMA_PATH, 0.7, Churn()),
    "abl_vp": (vp_grid, vp_path(), 1.0, Churn()),
    "abl_vp_euler": (vp_grid, vp_path(), None, Churn()),
    "abl_ve": (lambda: VE_GRID, VARIANCE_PATH, 1.0, Churn()),
    # Its noise is inflated by the official default: 1.007, as its second evaluation shows.
    "abl_ve_churn": (
        lambda: VE_GRID, VARIANCE_PATH, 1.0, dataclasses.replace(CHURN, noise_std=1.007)
    ),
    "abl_iddpm": (
        lambda: improved_ddpm_sigmas(0.002, 81.0, 6), SIGMA_PATH, 1.0, Churn()
    ),
}  # fmt: skip


def step_by_step(denoiser, x, sigmas, draws, *, alpha, path, churn):
    """The chain of `follow` written out, with the noise draws[i] at step i."""
    t = path.time(jnp.asarray(sigmas))
    raised = path.time(jnp.asarray(churn.raised(sigmas)))
    options = {"path": path, "noise_std": churn.noise_std}
    for i in range(len(sigmas) - 1):
        x = edm_step(denoiser, x, t[i], raised[i], t[i + 1], draws[i], alpha=alpha, **options)
    last = len(sigmas) - 1
    end = jnp.zeros(())
    return edm_step(denoiser, x, t[last], raised[last], end, draws[last], alpha=None, **options)


@pytest.mark.deep
@pytest.mark.parametrize("name", RUNS)
def test_runs_are_the_official_ones(golden, x64, name):
    # 1e-9 of the largest entry of each example, as the notes of the numbers ask.
    file = golden("i_samplers")
    make_grid, path, alpha, churn = RUNS[name]
    sigmas, draws = make_grid(), jnp.asarray(channels_last(file["in/z"]), float)
    latents = jnp.asarray(channels_last(file["in/latents"]), float)
    start = sigmas[0] * path.scale(path.time(jnp.asarray(sigmas[:1])))[0] * latents
    options = {"alpha": alpha, "path": path, "churn": churn}
    if churn.amount:
        run = lambda x, z: step_by_step(analytic_denoiser, x, sigmas, z, **options)
    else:
        run = lambda x, _: follow(jax.random.key(0), analytic_denoiser, x, sigmas, **options)
    value = jax.jit(run)(start, draws)
    expected = channels_last(file[f"out64/{name}"])
    largest = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
    assert np.all(np.abs(value - expected) <= 1e-9 * largest)


def test_the_noise_levels_are_the_official_ones(golden):
    # Grids are float64 tables: 1e-12 is a thousand roundings.
    file = golden("i_samplers")
    for name, (make_grid, _, _, churn) in RUNS.items():
        if not name.startswith("abl_vp") and "alpha" not in name:
            evaluated = file[f"out64/{name}_eval_sigmas"]
            stride = 1 if "euler" in name else 2
            raised = churn.raised(make_grid())
            np.testing.assert_allclose(raised, evaluated[::stride], rtol=1e-12)
    second = file["out64/abl_alpha_eval_sigmas"][1:-1:2]
    expected = EDM_GRID[:-1] + 0.7 * (EDM_GRID[1:] - EDM_GRID[:-1])
    np.testing.assert_allclose(second, expected, rtol=1e-12)


def test_heun_by_the_score_of_an_sde_is_heun_by_its_denoiser(golden, x64):
    file, sde = golden("i_samplers"), VESDE(0.002, 80.0)
    latents = 80.0 * jnp.asarray(channels_last(file["in/latents"]), float)
    score_fn = denoiser_to_score_fn(sde, analytic_denoiser)
    sample = functools.partial(heun, jax.random.key(0), score_fn, latents.shape, sde=sde)
    x, nfe = sample(num_steps=6, sigma_min=0.002, x_init=latents)
    # (D - x) / sigma^2 and back loses a rounding of x, up to 300, times 1e-16.
    np.testing.assert_allclose(x, channels_last(file["out64/edm_det"]), atol=1e-9)
    assert nfe == 11


def test_churn_draws_one_noise_for_each_step(x64):
    denoiser = lambda x, sigma: x / (1 + 4 * expand(sigma, x) ** 2)
    x, rng = jnp.asarray([[30.0, -50.0]]), jax.random.key(3)
    options = {"alpha": 1.0, "path": SIGMA_PATH, "churn": Churn(3.0, 0.0, 50.0, 1.01)}
    draws = [jax.random.normal(key, x.shape) for key in jax.random.split(rng, 6)]
    expected = step_by_step(denoiser, x, EDM_GRID, draws, **options)
    value = follow(rng, denoiser, x, EDM_GRID, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_heun_and_the_flow_of_a_gaussian(x64):
    # Data N(0, 0.5^2) from x = 80 at sigma = 80: the flow ends at 80 * 0.5 / sqrt(0.25 + 6400). The
    # errors were computed by another program to three digits.
    denoiser = lambda x, sigma: x * 0.25 / (0.25 + sigma[:, None] ** 2)
    exact = 80 * 0.5 / np.sqrt(0.25 + 6400)
    for num_steps, error in ((18, 5.53e-2), (36, 1.22e-2), (72, 2.87e-3), (144, 6.91e-4)):
        grid = rho_sigmas(0.002, 80.0, num_steps)
        x = follow(jax.random.key(0), denoiser, jnp.full((1, 1), 80.0), grid)
        np.testing.assert_allclose(x[0, 0] / exact - 1, error, rtol=2e-3)


def test_dpm_solver_and_the_flow_of_a_gaussian(x64):
    # The errors were computed by another program to three digits.
    sde, data = VPSDE(), Gaussian.isotropic(0.0, 0.5, 1)
    z, score_fn = jnp.ones((1, 1)), data.score_fn(sde)
    exact = data.flow_map(sde, z, 1.0, 1e-3)
    for num_steps, error in ((20, 1.30e-2), (40, 3.51e-3), (80, 8.90e-4), (160, 2.23e-4)):
        run = functools.partial(dpm_solver_pp, sde=sde, num_steps=num_steps, denoise=False)
        sample = jax.jit(lambda z, run=run: run(jax.random.key(0), score_fn, z.shape, x_init=z))
        x, nfe = sample(z)
        np.testing.assert_allclose(abs(x[0, 0] / exact[0, 0] - 1), error, rtol=5e-3)
        assert nfe == num_steps


def starts(sde, num):
    """Draws from the prior, and the same as data plus noise."""
    z = sde.sample_prior(jax.random.key(1), (num, 2))
    return z, z / sde.marginal(jnp.ones(1))[0][0]


@functools.cache
def end_of_flow(sde, method, num_steps):
    """Where a sampler takes 16 draws from the prior, in double precision."""
    z, start = starts(sde, 16)
    x_init, score_fn = z if method is dpm_solver_pp else start, MIXTURE.score_fn(sde)
    run = lambda x: method(
        jax.random.key(0), score_fn, x.shape, sde=sde, num_steps=num_steps, x_init=x
    )
    return np.asarray(jax.jit(lambda x: run(x).x)(x_init))


@pytest.mark.deep
@by_name
@pytest.mark.parametrize(("sampler", "order"), [(heun, 2), (dpm_solver_pp, 2), (euler, 1)])
def test_the_order_on_a_mixture(x64, sde, sampler, order):
    # All three tend to the denoised end of the same flow: each is held against a fine solution by
    # another method, whose own error is far below a tenth of what it judges.
    reference = end_of_flow(sde, dpm_solver_pp if sampler is heun else heun, 4000)
    errors = [np.linalg.norm(end_of_flow(sde, sampler, n) - reference) for n in (100, 200)]
    measured = np.log2(errors[0] / errors[1])
    # The next term of the error, one power of 1 / n smaller, moves the measured order by some 10 %.
    assert order - 0.25 < measured < order + 0.35, (errors, measured)


SAMPLERS = {
    "heun": functools.partial(heun, num_steps=40),
    "heun, churned": functools.partial(heun, num_steps=60, churn=Churn(10.0)),
    "dpm": functools.partial(dpm_solver_pp, num_steps=60),
    "dpm, noisy": functools.partial(sde_dpm_solver_pp, num_steps=100),
}


@pytest.mark.parametrize(
    "sde", slow_subvp([VPSDE(), SubVPSDE(), VESDE()]), ids=lambda sde: sde.name
)
@pytest.mark.parametrize("name", deep_where(lambda name: "," in name, SAMPLERS))
def test_samples_of_a_gaussian_have_its_moments(sde, name):
    data = Gaussian.isotropic(0.3, 0.5, 4)
    sample = lambda rng: SAMPLERS[name](rng, data.score_fn(sde), (10_000, 4), sde=sde).x
    x = np.asarray(jax.jit(sample)(jax.random.key(2)))
    # 40,000 numbers: standard errors of 0.0025 and 0.7 %; four of each, and 1 % for the steps. The
    # prior's mean is not that of p_1: it shifts the mean by 0.01 * 0.3 at most.
    np.testing.assert_allclose(x.mean(), 0.3, atol=0.013)
    np.testing.assert_allclose(x.var(), 0.25, rtol=0.04)


@pytest.mark.deep
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_mixture_have_its_law(name):
    # Four samplers, four directions: 16 tests at 1e-6 each.
    sde = VPSDE()
    sample = lambda rng: SAMPLERS[name](rng, MIXTURE.score_fn(sde), (2000, 2), sde=sde).x
    x = np.asarray(jax.jit(sample)(jax.random.key(8)))
    truth = np.asarray(MIXTURE.sample(jax.random.key(9), 20_000))
    for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
        assert stats.ks_2samp(x @ direction, truth @ direction).pvalue > 1e-6


@by_name
def test_one_step_of_dpm_solver_is_exact_for_a_single_point(x64, sde):
    # The denoised point is then a constant, for which the linear part is the whole flow.
    point = jnp.asarray([[0.7, -0.2]])
    z, _ = starts(sde, 3)

    def score_fn(x, t):
        scale, std = (expand(value, x) for value in sde.marginal(t))
        return (scale * point - x) / std**2

    run = functools.partial(dpm_solver_pp, jax.random.key(0), score_fn, z.shape, sde=sde)
    x = run(num_steps=1, t_min=0.1, denoise=False, x_init=z).x
    (s1, s0), (d1, d0) = (np.asarray(v) for v in sde.marginal(jnp.asarray([0.1, 1.0])))
    np.testing.assert_allclose(x, s1 * point + d1 / d0 * (z - s0 * point), rtol=1e-9)


def test_noisy_dpm_solver_keeps_the_variance_of_a_single_point():
    sde, num = VPSDE(), 40_000
    score_fn = lambda x, t: -x / expand(sde.marginal(t)[1] ** 2, x)
    sample = functools.partial(sde_dpm_solver_pp, sde=sde, num_steps=3, t_min=0.1, denoise=False)
    x = jax.jit(lambda rng: sample(rng, score_fn, (num, 1)).x)(jax.random.key(4))
    # Four standard errors of sqrt(2 / num).
    variance = float(sde.marginal(jnp.asarray([0.1]))[1][0]) ** 2
    np.testing.assert_allclose(np.var(x), variance, rtol=4 * np.sqrt(2 / num))


@pytest.mark.deep
@pytest.mark.parametrize(
    ("sampler", "nfe"),
    [
        (functools.partial(heun, num_steps=5), 9),
        (functools.partial(heun, num_steps=5, denoise=False), 8),
        (functools.partial(euler, num_steps=5), 5),
        (functools.partial(euler, num_steps=5, denoise=False), 4),
        (functools.partial(dpm_solver_pp, num_steps=5), 6),
        (functools.partial(sde_dpm_solver_pp, num_steps=5, denoise=False), 5),
    ],
)
def test_nfe_is_the_number_of_calls_and_none_is_beyond_the_ends(sampler, nfe):
    sde, calls = VPSDE(), []
    score_fn = MIXTURE.score_fn(sde)

    def counted(x, t):
        jax.debug.callback(lambda t: calls.append(float(t[0])), t)
        return score_fn(x, t)

    sampled = jax.block_until_ready(sampler(jax.random.key(0), counted, (1, 2), sde=sde))
    jax.effects_barrier()
    assert sampled.nfe == len(calls) == nfe
    # float32 times that went through a noise level: 1e-5.
    assert min(calls) >= sde.sampling_t_min * (1 - 1e-5) and max(calls) <= sde.t_max


def test_churn_stirs_no_level_that_would_rise_beyond_that_of_t_max():
    sde, calls = VPSDE(), []
    x_init = 152.0 * jnp.ones((1, 2))

    def recorded(x, t):
        jax.debug.callback(lambda x, t: calls.append((float(t[0]), np.asarray(x))), x, t)
        return MIXTURE.score_fn(sde)(x, t)

    sample = functools.partial(heun, sde=sde, num_steps=4, x_init=x_init, churn=Churn(40.0))
    jax.block_until_ready(jax.jit(lambda rng: sample(rng, recorded, (1, 2)))(jax.random.key(0)))
    jax.effects_barrier()
    # The highest level is left alone: the first call sees the start itself, at t_max.
    t, x = max(calls, key=lambda call: call[0])
    assert t <= sde.t_max
    np.testing.assert_allclose(x, float(sde.marginal(jnp.ones(1))[0][0]) * x_init, rtol=1e-5)


def test_a_start_beyond_the_noise_of_t_max_is_refused():
    sde = VPSDE()
    with pytest.raises(ValueError, match=r"sigma_max must be at most 152\.\d+, that of t_max"):
        heun(jax.random.key(0), MIXTURE.score_fn(sde), (4, 2), sde=sde, sigma_max=200.0)


def test_without_churn_only_the_start_is_random():
    sde = VPSDE()
    z, score_fn = jnp.ones((2, 2)), MIXTURE.score_fn(sde)
    for sampler in (heun, euler, dpm_solver_pp):
        run = functools.partial(sampler, sde=sde, num_steps=4, x_init=z)
        sample = jax.jit(lambda rng, run=run: run(rng, score_fn, z.shape).x)
        np.testing.assert_array_equal(sample(jax.random.key(0)), sample(jax.random.key(1)))


def test_grids_of_noise_levels():
    grid = rho_sigmas(0.002, 80.0, 18)
    assert grid[0] == 80.0 and grid[-1] == 0.002 and np.all(np.diff(grid) < 0)
    np.testing.assert_allclose(np.diff(grid ** (1 / 7), 2), 0, atol=1e-12)
    np.testing.assert_allclose(rho_sigmas(0.1, 2.0, 5, rho=1.0), np.linspace(2.0, 0.1, 5))
    with pytest.raises(ValueError, match="rho_sigmas needs 0 < sigma_min < sigma_max"):
        rho_sigmas(1.0, 1.0, 5)
    with pytest.raises(ValueError, match="levels between sigma_min and sigma_max"):
        improved_ddpm_sigmas(1e-6, 2e-6, 5)
    with pytest.raises(ValueError, match=r"num_scales <= 985, the levels .*; got 1200"):
        improved_ddpm_sigmas(0.01, 50.0, 1200)
