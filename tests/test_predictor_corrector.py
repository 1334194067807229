# SPDX-License-Identifier: Apache-2.0
"""Predictor-corrector chains against exact moment recursions and against the data's law.

On Gaussian data every predictor, and annealed Langevin, is an affine map x -> P x + Q + W z. The
recursions below read P, Q and W off the library's own functions in float64, so that bias and order
are measured without Monte-Carlo noise; the chains are then held to the recursions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    Gaussian,
    GaussianMixture,
    affine_coefficients,
    isotropic_score_fn,
    moment_recursion,
)
from scipy import stats

from scorejax.samplers import correctors, predictors
from scorejax.samplers.correctors import CORRECTORS, get_corrector
from scorejax.samplers.predictor_corrector import (
    predictor_corrector,
)
from scorejax.samplers.predictors import PREDICTORS, get_predictor
from scorejax.schedules import time_grid
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.compilation import optimised_jit
from tests.slow import slow_subvp, slow_where

SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE()}
SOME_SLOW = slow_subvp(SDES)
KEY = jax.random.key(0)


def predictor_update(name, sde, score_fn, num_steps):
    """(x, t, z) -> x of the predictor `name`, for the affine oracle."""
    step = {
        "euler_maruyama": predictors.euler_maruyama_step,
        "reverse_diffusion": predictors.reverse_diffusion_step,
        "ancestral": predictors.ancestral_step,
    }.get(name)
    if step is None:
        return lambda x, t, z: PREDICTORS[name](KEY, sde, score_fn, x, t, num_steps).x
    return lambda x, t, z: step(sde, score_fn, x, t, z, num_steps)[0]


def prior_variance(sde):
    return float(sde.sigma_max**2) if sde.name == "ve" else 1.0


def chain_moments(name, sde, num_steps, t_min=None):
    """Mean and variance after a predictor-only chain on N(1, 0.25) data, last noise included."""
    score_fn = Gaussian.isotropic(1.0, 0.5, 1).score_fn(sde)
    t = jnp.asarray(time_grid(1.0, sde.sampling_t_min if t_min is None else t_min, num_steps))
    update = predictor_update(name, sde, score_fn, num_steps)
    return moment_recursion([update], t, 0.0, prior_variance(sde))


@pytest.mark.deep
@pytest.mark.parametrize(
    ("sde", "name", "variances"),
    [
        ("vp", "euler_maruyama", [0.25076, 0.25035, 0.25015, 0.25005]),
        ("vp", "euler_flow", [0.24981, 0.24977, 0.24976, 0.24975]),
        ("vp", "reverse_diffusion", [0.25254, 0.25199, 0.25090, 0.25037]),
        ("vp", "ancestral", [0.25128, 0.25136, 0.25059, 0.25021]),
        ("ve", "euler_maruyama", [0.25061, 0.25035, 0.25022, 0.25016]),
        ("ve", "euler_flow", [0.23331, 0.24158, 0.24579, 0.24792]),
        ("ve", "reverse_diffusion", [0.25434, 0.25216, 0.25109, 0.25055]),
        ("ve", "ancestral", [0.24570, 0.24780, 0.24886, 0.24939]),
    ],
)
def test_the_published_grids_have_these_moments(x64, sde, name, variances):
    # An independent recursion from the formulas of the paper, printed to five decimals.
    ours = [chain_moments(name, SDES[sde], num_steps)[1] for num_steps in (500, 1000, 2000, 4000)]
    np.testing.assert_allclose(ours, variances, atol=5.1e-6)


def test_the_euler_flow_shifts_the_mean_by_the_mismatch_of_the_prior(x64):
    means = [chain_moments("euler_flow", SDES["vp"], n)[0] for n in (500, 1000, 2000, 4000)]
    np.testing.assert_allclose(means, [0.99681, 0.99704, 0.99715, 0.99721], atol=5.1e-6)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "none"])
def test_every_predictor_is_of_first_order(x64, sde, name):
    if (sde, name) == ("subvp", "ancestral"):
        pytest.skip("sub-VP has no ancestral chain")
    # t_min = 1e-5 keeps the entry of the discrete table at the time that the score is given; with
    # 1e-3 it lags by up to num_steps / 1000 entries and the error is not monotone. The ratio of
    # successive differences is 2 up to the next order in 1/n, below 10 % at n = 1000.
    moments = np.array([chain_moments(name, SDES[sde], n, t_min=1e-5) for n in (1000, 2000, 4000)])
    differences = np.diff(moments[:, 1])
    assert differences[0] / differences[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("data_std", "variance"), [(0.25, 0.0639972), (0.5, 0.256297)])
def test_langevin_inflates_the_denoised_variance_by_a_known_amount(x64, data_std, variance):
    # VE(50), 1000 steps, snr 0.16, in the limit of many dimensions, where |score|^2 is its mean.
    sde, snr, num_steps = SDES["ve"], 0.16, 1000
    score_fn = Gaussian.isotropic(1.0, data_std, 1).score_fn(sde)
    t = jnp.asarray(time_grid(1.0, sde.sampling_t_min, num_steps))
    noisy, mean = (
        affine_coefficients(
            lambda x, t, z, i=i: predictors.reverse_diffusion_step(
                sde, score_fn, x, t, z, num_steps
            )[i],
            t,
        )
        for i in (0, 1)
    )
    true_variance = data_std**2 + np.asarray(sde.sigma(t)) ** 2
    m, v = 0.0, 2500.0
    for j, truth in enumerate(true_variance):
        size = 2 * (snr * truth) ** 2 / (v + (m - 1) ** 2)
        m, v = m - size * (m - 1) / truth, (1 - size / truth) ** 2 * v + 2 * size
        slope, shift, noise = (c[j] for c in (mean if j == num_steps - 1 else noisy))
        m, v = slope * m + shift, slope**2 * v + noise**2
    assert v == pytest.approx(variance, rel=2e-6)  # the number is printed to six digits


def test_annealed_langevin_has_its_stationary_variance(x64):
    # Moves of a fixed size e have stationary variance v / (1 - e / (2 v)); fixed point to rounding.
    sde, snr = SDES["ve"], 0.3
    data = Gaussian.isotropic(0.0, 0.5, 1)
    t = jnp.asarray([0.4])
    update = lambda x, t, z: correctors.annealed_langevin_step(
        sde, data.score_fn(sde), x, t, z, snr=snr, num_steps=100
    )[0]
    slope, _, noise = (c[0] for c in affine_coefficients(update, t))
    sigma = float(sde.sigma(0.4))
    size, v = 2 * (snr * sigma) ** 2, 0.25 + sigma**2
    assert noise**2 / (1 - slope**2) == pytest.approx(v / (1 - size / (2 * v)), rel=1e-10)


def test_langevin_by_snr_inflates_the_variance_by_one_plus_snr_squared():
    # 64 chains of 2000 coordinates: 3 standard errors of a variance are 1.2 %, and 1/D is 0.1 %.
    sde, snr = SDES["ve"], 0.4
    score_fn = isotropic_score_fn(sde, 0.0, 0.5)
    t = jnp.full((64,), 0.4)
    v = 0.25 + float(sde.sigma(0.4)) ** 2
    x = np.sqrt(v) * jax.random.normal(KEY, (64, 2000))
    move = functools.partial(correctors.langevin, snr=snr, num_inner=100, num_steps=100)
    x, _, nfe = optimised_jit(lambda x: move(jax.random.key(1), sde, score_fn, x, t))(x)
    assert nfe == 100
    assert float(x.var()) / v == pytest.approx(1 + snr**2, rel=0.013)


def test_the_last_mean_of_ve_is_tweedies_denoiser(x64):
    # From the exact p at sigma_min: x + sigma_min^2 score has variance s^4 / (s^2 + sigma_min^2).
    sde, data_std = SDES["ve"], 0.05
    score_fn = Gaussian.isotropic(0.0, data_std, 1).score_fn(sde)
    update = lambda x, t, z: predictors.reverse_diffusion_step(sde, score_fn, x, t, z, 1000)[1]
    slope, _, noise = (c[0] for c in affine_coefficients(update, jnp.zeros(1)))
    v = data_std**2 + sde.sigma_min**2
    assert noise == 0
    assert slope**2 * v == pytest.approx(data_std**4 / v, rel=1e-12)


DIM, CHAINS, STEPS, SNR = 512, 128, 100, 0.1


def many_chains(sde, score_fn, predictor_names, corrector_names, shape):
    """One compiled program (rng, i, j) -> Sampled for all pairs of predictor i and corrector j."""

    def run(rng, i, j):
        moves = [PREDICTORS[name] for name in predictor_names]
        fixes = [CORRECTORS[name] for name in corrector_names]

        def predictor(rng, sde, score_fn, x, t, num_steps):
            branches = [
                lambda rng, x, t, move=move: move(rng, sde, score_fn, x, t, num_steps)
                for move in moves
            ]
            return jax.lax.switch(i, branches, rng, x, t)

        def corrector(rng, sde, score_fn, x, t, **sizes):
            branches = [
                lambda rng, x, t, fix=fix: fix(rng, sde, score_fn, x, t, **sizes) for fix in fixes
            ]
            return jax.lax.switch(j, branches, rng, x, t)

        return predictor_corrector(
            rng, score_fn, shape, sde=sde, predictor=predictor, corrector=corrector,
            num_steps=STEPS, snr=SNR, denoise=False,
        )  # fmt: skip

    return optimised_jit(run)


def langevin_recursion(corrector, mean, variance, data_mean, true_mean, truth, alpha, std):
    """Moments after one corrector move in many dimensions, with all coordinates alike."""
    if corrector == "none":
        return mean, variance
    spread = variance + (mean - true_mean) ** 2
    size = 2 * alpha * (SNR * (std if corrector == "annealed_langevin" else 1.0)) ** 2
    if corrector != "annealed_langevin":
        size = size * truth**2 / spread
    slope = 1 - size / truth
    return true_mean + slope * (mean - true_mean), slope**2 * variance + 2 * size


@functools.cache
def affine_chain(sde, predictor, num_steps):
    """Slope, shift and noise of each step on N(1, 0.25) data, with scale, std and alpha there."""
    with jax.enable_x64(True):
        score_fn = Gaussian.isotropic(1.0, 0.5, 1).score_fn(sde)
        t = jnp.asarray(time_grid(1.0, sde.sampling_t_min, num_steps))
        update = predictor_update(predictor, sde, score_fn, num_steps)
        coefficients = affine_coefficients(update, t)
        return np.stack(
            [*coefficients, *sde.marginal(t), sde.transition(t, num_steps)[0] ** 2], axis=1
        )


def expected_moments(sde, predictor, corrector, num_steps=STEPS):
    """Mean and variance of each coordinate after the chain, for N(1, 0.25) data."""
    mean, variance = 0.0, prior_variance(sde)
    for slope, shift, noise, scale, std, alpha in affine_chain(sde, predictor, num_steps):
        truth = 0.25 * scale**2 + std**2
        mean, variance = langevin_recursion(
            corrector, mean, variance, 1.0, scale, truth, alpha, std
        )
        mean, variance = slope * mean + shift, slope**2 * variance + noise**2
    return mean, variance


@pytest.mark.deep
@pytest.mark.parametrize("name", slow_where(lambda name: name != "vp", SDES))
def test_every_pair_reaches_the_moments_of_its_recursion_and_a_normal_law(name):
    # 65 536 coordinates a pair; mean and variance within 5 standard errors. The recursion takes
    # norms at their mean square: over a batch this is off by 1 / D, and example by example the
    # moves v / |x|^2 are larger on average than at the average norm, by 2 / D at each move and
    # three times that where they have settled. Law: Kolmogorov-Smirnov against the normal law of
    # the recursion at 5e-7, where it is exact. 68 pairs, 136 moments at 6e-7 and 33 laws: a false
    # alarm in 1e-4 of all seeds; the seed is fixed.
    sde = SDES[name]
    first = [p for p in PREDICTORS if (name, p) != ("subvp", "ancestral")]
    second = list(CORRECTORS)
    run = many_chains(sde, isotropic_score_fn(sde, 1.0, 0.5), first, second, (CHAINS, DIM))
    for i, predictor in enumerate(first):
        for j, corrector in enumerate(second):
            x, nfe = run(jax.random.key(100 * i + j), i, j)
            assert int(nfe) == STEPS * ((predictor != "none") + (corrector != "none"))
            if (predictor, corrector) == ("none", "none"):
                continue
            mean, variance = expected_moments(sde, predictor, corrector)
            x = np.asarray(x, np.float64).ravel()
            slack = {"langevin": 6, "batch_langevin": 1}.get(corrector, 0) / DIM
            label = f"{name} {predictor} {corrector}"
            assert abs(x.mean() - mean) < 5 * np.sqrt(variance / x.size) + slack * abs(mean), label
            error = 5 * np.sqrt(2 / x.size) + slack
            assert abs(x.var() / variance - 1) < error, label
            if slack == 0:
                law = stats.norm(mean, np.sqrt(variance))
                assert stats.kstest(x, law.cdf).pvalue > 5e-7, label


@pytest.mark.parametrize("name", SDES)
def test_the_truth_is_reached_within_the_bias_of_the_method(name):
    # The recursion, not chains: distance from N(1, 0.25) after 1000 steps. What is known of it: 3
    # to 5 % of the variance for the first-order flows, 1 % else; 1 + snr^2 = 1.01 for Langevin.
    for predictor in PREDICTORS:
        if predictor == "none" or (name, predictor) == ("subvp", "ancestral"):
            continue
        for corrector in CORRECTORS:
            mean, variance = expected_moments(SDES[name], predictor, corrector, num_steps=1000)
            bias = 0.05 if "flow" in predictor else 0.02
            assert mean == pytest.approx(1, abs=0.011), (predictor, corrector)
            assert variance == pytest.approx(0.25, rel=bias), (predictor, corrector)


MIXTURE = GaussianMixture(
    np.array([0.3, 0.7]), np.array([[1.0, -1.0], [-0.5, 0.5]]), np.array([0.3, 0.5])
)


@pytest.mark.deep
@pytest.mark.parametrize("name", SOME_SLOW)
def test_every_pair_draws_from_a_mixture(name):
    # Two-sample Kolmogorov-Smirnov tests on four projections, 4 x 42 of them at p = 5e-7 each: a
    # false alarm in 1e-4 of all seeds; the seed is fixed. 2000 draws see 6 % of the mass misplaced.
    # Left out: "none" (100 moves do not carry the prior to the data) and "langevin", whose moves
    # are only right in many dimensions.
    sde = VESDE(sigma_max=10.0) if name == "ve" else SDES[name]
    first = [p for p in PREDICTORS if p != "none" and (name, p) != ("subvp", "ancestral")]
    second = ["none", "annealed_langevin", "batch_langevin"]
    run = many_chains(sde, MIXTURE.score_fn(sde), first, second, (2000, 2))
    truth = np.asarray(MIXTURE.sample_at(jax.random.key(1), sde, sde.sampling_t_min, 20_000))
    for i, predictor in enumerate(first):
        for j, corrector in enumerate(second):
            x = np.asarray(run(jax.random.key(1000 + 10 * i + j), i, j).x)
            for direction in ([1, 0], [0, 1], [1, 1], [1, -1]):
                pvalue = stats.ks_2samp(x @ direction, truth @ direction).pvalue
                assert pvalue > 5e-7, f"{name} {predictor} {corrector} {direction}: {pvalue:.1e}"


@pytest.mark.deep
def test_anisotropic_gaussian_data_keep_their_covariance():
    # 20 000 chains: entries of a covariance with unit variances have a standard error of 0.01;
    # four of those and the bias of 300 Euler-Maruyama steps (1 % of the variance).
    covariance = np.array([[1.0, 0.3, 0.1], [0.3, 0.5, 0.0], [0.1, 0.0, 0.2]])
    data, sde = Gaussian(np.array([1.0, -0.5, 0.2]), covariance), SDES["subvp"]
    draw = functools.partial(
        predictor_corrector, sde=sde, predictor=predictors.euler_maruyama, num_steps=300
    )
    x = np.asarray(optimised_jit(lambda rng: draw(rng, data.score_fn(sde), (20_000, 3)).x)(KEY))
    np.testing.assert_allclose(x.mean(axis=0), data.mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.05)


def test_a_vanishing_score_moves_nothing():
    sde, x = SDES["ve"], jnp.ones((3, 4))
    flat = lambda x, t: jnp.zeros_like(x).at[1:].set(-1.0)
    for corrector in (correctors.langevin, correctors.annealed_langevin):
        moved, _, _ = corrector(
            KEY, sde, flat, x, jnp.full(3, 0.5), snr=0.1, num_inner=2, num_steps=10
        )
        assert np.all(np.isfinite(moved))
    moved, x_mean, _ = correctors.langevin(
        KEY, sde, flat, x, jnp.full(3, 0.5), snr=0.1, num_inner=2, num_steps=10
    )
    np.testing.assert_array_equal(moved[0], x[0])
    np.testing.assert_array_equal(x_mean[0], x[0])
    assert not np.any(moved[1] == x[1])
    still, _, _ = correctors.batch_langevin(
        KEY, sde, lambda x, t: 0 * x, x, jnp.full(3, 0.5), snr=0.1, num_inner=2, num_steps=10
    )
    np.testing.assert_array_equal(still, x)


@pytest.mark.parametrize(
    ("corrector", "depends"),
    [("langevin", False), ("annealed_langevin", False), ("batch_langevin", True)],
)
def test_a_row_depends_on_its_batch_mates_only_with_batch_norms(corrector, depends):
    # The same program on the same shapes, so equal to the last bit.
    sde = SDES["vp"]
    data = Gaussian.isotropic(1.0, 0.5, 4)
    draw = functools.partial(
        predictor_corrector, sde=sde, corrector=CORRECTORS[corrector], num_steps=30, snr=0.1
    )
    run = jax.jit(lambda x: draw(KEY, data.score_fn(sde), x.shape, x_init=x).x)
    x = jax.random.normal(jax.random.key(1), (3, 4))
    same = np.array_equal(run(x)[0], run(x.at[1:].multiply(2.0))[0])
    assert same != depends


def test_tuning_snr_does_not_compile_again():
    sde, traces = SDES["ve"], []
    data = Gaussian.isotropic(0.0, 1.0, 2)

    @jax.jit
    def run(snr):
        traces.append(1)
        return predictor_corrector(
            KEY, data.score_fn(sde), (2, 2), sde=sde, corrector=correctors.langevin, num_steps=5,
            snr=snr,
        ).x  # fmt: skip

    assert not np.array_equal(run(0.1), run(0.2))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: run(predictor=predictors.ancestral, sde=SubVPSDE()), "take reverse_diffusion"),
        (lambda run: run(sde=VPSDE(), num_steps=15), "num_steps=15 gives 1.33"),
        (lambda run: run(num_steps=1), "num_steps >= 2; got 1"),
        (lambda run: run(num_inner=0), "num_inner must be at least 1; got 0"),
        (lambda run: run(t_min=2.0), "t_min=2.0, t_max=1.0"),
        (lambda run: get_predictor("ancestrall"), "did you mean 'ancestral'"),
        (lambda run: get_corrector("ald"), "unknown corrector 'ald'.*annealed_langevin"),
    ],
)
def test_impossible_chains_are_refused_by_name_and_value(call, message):
    def run(**options):
        options = {"sde": VESDE(), "num_steps": 10} | options
        return predictor_corrector(KEY, lambda x, t: -x, (2, 3), **options)

    with pytest.raises(ValueError, match=message):
        call(run)
