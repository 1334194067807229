# SPDX-License-Identifier: Apache-2.0
"""Annealed Langevin dynamics against exact recursions and known laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorejax.linear_operators import mask_operator
from scorejax.numerics import expand
from scorejax.samplers import langevin
from scorejax.schedules import geometric_sigmas, langevin_step_size, langevin_step_sizes
from tests.compilation import optimised_jit

LADDER = geometric_sigmas(0.1, 2.0, 12)
STEP = langevin_step_size(LADDER[0] / LADDER[1], 3) * LADDER[-1] ** 2
CHAIN = {"sigmas": LADDER, "step_size": STEP, "steps_per_level": 3}
FIVE_STEPS = {
    "step_size": langevin_step_size(LADDER[0] / LADDER[1], 5) * LADDER[-1] ** 2,
    "steps_per_level": 5,
}
CIFAR = geometric_sigmas(0.01, 50.0, 232)


def gaussian(mean, std):
    """Score of N(mean, (std^2 + sigma^2) I)."""
    return lambda x, sigma: (mean - x) / expand(std**2 + sigma**2, x)


def gaussian_recursion(mean, std, sigmas, step_size, steps, *, start):
    """Mean and variance at the end of a chain on N(mean, std^2) data, and after denoising."""
    mu, v = start
    for sigma, alpha in zip(sigmas, langevin_step_sizes(sigmas, step_size), strict=True):
        target = std**2 + sigma**2
        for _ in range(steps):
            mu -= alpha * (mu - mean) / target
            v = (1 - alpha / target) ** 2 * v + 2 * alpha
    shrink = 1 - sigmas[-1] ** 2 / (std**2 + sigmas[-1] ** 2)
    return mu, v, mean + shrink * (mu - mean), shrink**2 * v


@pytest.mark.parametrize("std", [0.05, 0.25])
def test_the_published_chain_on_gaussian_data_has_the_moments_known_for_it(std):
    # Seven digits are written down, the last of them rounded: 2e-7. Five steps a level leave wide
    # data 14 % too wide.
    known = {0.05: (0.002959076, 0.002735832), 0.25: (0.07127999, 0.07105244)}[std]
    for start in ((0.5, 1 / 12), (0.0, 2500.0)):
        _, v, _, denoised = gaussian_recursion(0.5, std, CIFAR, 6.2e-6, 5, start=start)
        assert (v, denoised) == pytest.approx(known, rel=2e-7)


@pytest.mark.parametrize("denoise", [True, False])
def test_a_chain_on_gaussian_data_has_the_moments_of_its_recursion(denoise):
    # 40,000 numbers: four standard errors, a false alarm in 16,000.
    mean, std, num = 0.5, 0.3, 40_000
    x, nfe = langevin.annealed_langevin(
        jax.random.key(0), gaussian(mean, std), (num // 4, 4), **CHAIN, denoise=denoise
    )
    found = gaussian_recursion(mean, std, LADDER, STEP, 3, start=(0.0, LADDER[0] ** 2))
    mu, v = found[2:] if denoise else found[:2]
    assert nfe == 36 + denoise
    assert np.mean(x) == pytest.approx(mu, abs=4 * np.sqrt(v / num))
    assert np.var(x) == pytest.approx(v, rel=4 * np.sqrt(2 / num))


def test_a_chain_has_the_law_of_its_recursion_at_the_smallest_level():
    # Gaussian at every step, so Kolmogorov's test against that normal law; 1e-4 false alarms.
    x, _ = langevin.annealed_langevin(
        jax.random.key(1), gaussian(0.5, 0.3), (5000, 1), **CHAIN, denoise=False
    )
    mu, v, _, _ = gaussian_recursion(0.5, 0.3, LADDER, STEP, 3, start=(0.0, LADDER[0] ** 2))
    assert stats.kstest(np.asarray(x)[:, 0], stats.norm(mu, np.sqrt(v)).cdf).pvalue > 1e-4


@pytest.mark.deep
def test_many_steps_lead_to_the_true_law_of_the_smallest_level():
    # 300 small steps a level: the recursion's variance is the true one to 1 %, which 4000 samples
    # do not tell apart; a two-sample test with 1e-4 false alarms.
    step = 0.02 * LADDER[-1] ** 2
    _, v, _, _ = gaussian_recursion(0.5, 0.1, LADDER, step, 300, start=(0.0, LADDER[0] ** 2))
    truth = 0.1**2 + LADDER[-1] ** 2
    assert v == pytest.approx(truth, rel=0.01)
    chain = {"sigmas": LADDER, "step_size": step, "steps_per_level": 300, "denoise": False}
    draw = lambda rng: langevin.annealed_langevin(rng, gaussian(0.5, 0.1), (4000, 1), **chain).x
    x = optimised_jit(draw)(jax.random.key(2))
    drawn = 0.5 + np.sqrt(truth) * np.random.default_rng(0).normal(size=4000)
    assert stats.ks_2samp(np.asarray(x)[:, 0], drawn).pvalue > 1e-4


def test_steps_of_one_size_at_one_level_inflate_the_variance_as_known():
    # V / (1 - alpha / (2 V)), here 1.25 V; two levels that hardly differ are one. 40,000 numbers.
    sigmas = np.array([1.0001, 1.0])
    x, _ = langevin.annealed_langevin(
        jax.random.key(0), gaussian(0.0, 0.0), (40_000, 1), sigmas=sigmas, step_size=0.4,
        steps_per_level=30, denoise=False,
    )  # fmt: skip
    assert np.var(x) == pytest.approx(1.25, rel=4 * np.sqrt(2 / 40_000) + 2e-4)


def test_of_a_single_point_the_denoised_sample_is_that_point():
    # x + sigma^2 (m - x) / sigma^2 in single precision: a few roundings of numbers near one.
    point = jnp.asarray([0.2, -0.7, 1.0])
    score_fn = lambda x, sigma: (point[None] - x) / sigma[:, None] ** 2
    x, _ = langevin.annealed_langevin(jax.random.key(0), score_fn, (100, 3), **CHAIN)
    np.testing.assert_allclose(x, np.tile(point, (100, 1)), atol=3e-7)


def test_denoising_lowers_the_squared_error_by_what_tweedie_says():
    # x_0 of N(0, s^2) seen as x = x_0 + sigma z: the error sigma^2 falls to s^2 sigma^2 / (s^2 +
    # sigma^2). Both are means of squared Gaussians, 4 standard errors of 40,000.
    s, sigma, num = 0.3, 0.1, 40_000
    clean, noise = np.random.default_rng(0).normal(size=(2, num, 1))
    start = jnp.asarray(s * clean + sigma * noise, jnp.float32)
    still = {"sigmas": np.array([sigma * 1.0001, sigma]), "step_size": 1e-12, "steps_per_level": 1}
    errors = []
    for denoise in (False, True):
        x, _ = langevin.annealed_langevin(
            jax.random.key(0), gaussian(0.0, s), start.shape, **still, denoise=denoise, x_init=start
        )
        errors.append(np.mean((np.asarray(x) - s * clean) ** 2))
    expected = sigma**2, s**2 * sigma**2 / (s**2 + sigma**2)
    assert errors == pytest.approx(expected, rel=4 * np.sqrt(2 / num))


MODES, WEIGHTS = np.array([-1.0, 1.0]), np.array([0.2, 0.8])


def mixture(x, sigma):
    """Score of two narrow modes 20 of their widths apart."""
    variance = 0.1**2 + sigma[:, None] ** 2
    logits = np.log(WEIGHTS)[None] - (x - MODES[None]) ** 2 / (2 * variance)
    share = jax.nn.softmax(logits, axis=1)
    return jnp.sum(share * (MODES[None] - x), axis=1, keepdims=True) / variance


@pytest.mark.deep
def test_unequal_weights_of_a_mixture_are_found_with_annealing_and_not_without():
    # Binomial tests of 2000 chains, 1e-4 false alarms. Without annealing a chain stays near where
    # it starts, on either side alike; both have the same start.
    num, ladder = 2000, geometric_sigmas(0.05, 5.0, 40)
    relative = langevin_step_size(ladder[0] / ladder[1], 20)
    options = {"step_size": relative * 0.05**2, "denoise": True}
    x, _ = langevin.annealed_langevin(
        jax.random.key(0), mixture, (num, 1), sigmas=ladder, steps_per_level=20, **options
    )
    assert stats.binomtest(int((np.asarray(x) > 0).sum()), num, WEIGHTS[1]).pvalue > 1e-4
    alone = {"sigmas": np.array([0.05001, 0.05]), "steps_per_level": 400}
    start = ladder[0] * jax.random.normal(jax.random.key(1), (num, 1))
    x, _ = langevin.annealed_langevin(
        jax.random.key(0), mixture, (num, 1), **alone, **options, x_init=start
    )
    right = int((np.asarray(x) > 0).sum())
    assert stats.binomtest(right, num, WEIGHTS[1]).pvalue < 1e-10
    assert stats.binomtest(right, num, 0.5).pvalue > 1e-4


COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])


def correlated(x, sigma):
    """Score of N(0, COVARIANCE) data."""
    variance = 1 + sigma[:, None] ** 2
    return -(variance * x - 0.8 * x[:, ::-1]) / (variance**2 - 0.8**2)


def inpainting_recursion(y, sigmas, step_size, steps):
    """Mean and variance of the second number of COVARIANCE data, denoised, with y the first."""
    mean, spread = np.zeros(2), sigmas[0] ** 2 * np.eye(2)
    for sigma, alpha in zip(sigmas, langevin_step_sizes(sigmas, step_size), strict=True):
        precision = np.linalg.inv(COVARIANCE + sigma**2 * np.eye(2))
        slope = np.eye(2) - alpha * precision
        for _ in range(steps):
            mean, spread = np.array([y, mean[1]]), np.diag([sigma**2, spread[1, 1]])
            mean, spread = slope @ mean, slope @ spread @ slope.T + 2 * alpha * np.eye(2)
    slope = np.eye(2) - sigmas[-1] ** 2 * precision
    return (slope @ mean)[1], (slope @ spread @ slope.T)[1, 1]


@pytest.mark.deep
def test_measured_values_are_kept_and_the_others_have_a_known_bias():
    # Replacing is not drawing from the conditional law, N(.8 y, .36). By the recursion the mean
    # comes out 20 % low and the variance 55 % too wide with these few steps; four standard errors.
    num, y = 20_000, 1.5
    x, nfe = langevin.sample_given(
        jax.random.key(0), correlated, (num, 2), operator=mask_operator(np.array([True, False])),
        y=jnp.tile(jnp.asarray([y, 0.0]), (num, 1)), sigmas=LADDER, **FIVE_STEPS,
    )  # fmt: skip
    assert nfe == 61
    assert (np.asarray(x[:, 0]) == y).all()
    mean, v = inpainting_recursion(y, LADDER, FIVE_STEPS["step_size"], 5)
    assert (mean / (0.8 * y), v / 0.36) == pytest.approx((0.7986, 1.5529), abs=5e-5)
    assert np.mean(x[:, 1]) == pytest.approx(mean, abs=4 * np.sqrt(v / num))
    assert np.var(x[:, 1]) == pytest.approx(v, rel=4 * np.sqrt(2 / num))


def test_the_bias_of_replacing_falls_as_steps_are_added():
    # Exact recursions: 16 times the steps a level, each of a size that suits that number.
    errors = []
    for steps in (5, 80):
        relative = langevin_step_size(LADDER[0] / LADDER[1], steps)
        mean, v = inpainting_recursion(1.5, LADDER, relative * LADDER[-1] ** 2, steps)
        errors.append((abs(mean / 1.2 - 1), abs(v / 0.36 - 1)))
    assert np.all(np.array(errors[1]) < np.array(errors[0]) / 2)


def test_what_is_measured_has_the_noise_of_its_level_whenever_the_score_is_asked():
    # 1000 numbers at each of 36 moves: four standard errors of a standard deviation, the noise
    # new each time.
    seen, y = [], 3.0

    def score_fn(x, sigma):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x[:, 0], ordered=True)
        return correlated(x, sigma)

    langevin.sample_given(
        jax.random.key(0), score_fn, (1000, 2), operator=mask_operator(np.array([1.0, 0.0])),
        y=jnp.full((1000, 2), y), **CHAIN, denoise=False,
    )  # fmt: skip
    jax.effects_barrier()
    noise = (np.stack(seen) - y) / np.repeat(LADDER, 3)[:, None]
    np.testing.assert_allclose(np.std(noise, axis=1), 1, rtol=4 / np.sqrt(2 * 1000))
    correlations = np.corrcoef(noise) - np.eye(36)
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)  # the largest of 630


def test_interpolated_noise_has_the_correlation_of_its_angles():
    # Sample correlations of 40,000 pairs have a standard error below .005.
    first, second = np.random.default_rng(0).normal(size=(2, 40_000, 1))
    z = langevin.mixed_noise(jnp.asarray(first), jnp.asarray(second), 5).reshape(-1, 5)
    angles = np.linspace(0, np.pi / 2, 5)
    expected = np.cos(angles[:, None] - angles[None])
    np.testing.assert_allclose(np.cov(z, rowvar=False), expected, atol=0.03)


def test_interpolated_samples_change_little_by_little_and_each_has_the_chains_law():
    rows, nfe = langevin.interpolate(
        jax.random.key(0), gaussian(0.5, 0.3), (8000, 1), 5, **CHAIN, denoise=False
    )
    assert rows.shape == (8000, 5, 1) and nfe == 36
    mu, v, _, _ = gaussian_recursion(0.5, 0.3, LADDER, STEP, 3, start=(0.0, LADDER[0] ** 2))
    moments = np.mean(rows, axis=(0, 2)), np.var(rows, axis=(0, 2))
    np.testing.assert_allclose(moments[0], mu, atol=4 * np.sqrt(v / 8000))
    np.testing.assert_allclose(moments[1], v, rtol=4 * np.sqrt(2 / 8000))
    apart = np.mean((rows[:, :1] - rows) ** 2, axis=(0, 2))
    assert (np.diff(apart) > 0).all()
    # Covariances go as the variance does, but with what two noises share: cos(u_j - u_k) of each.
    # A sample covariance has a standard error of at most v sqrt(2 / 8000).
    angles = np.linspace(0, np.pi / 2, 5)
    cosines = np.cos(angles[:, None] - angles[None])
    shared = np.full((5, 5), LADDER[0] ** 2)
    for sigma, alpha in zip(LADDER, langevin_step_sizes(LADDER, STEP), strict=True):
        for _ in range(3):
            shared = (1 - alpha / (0.3**2 + sigma**2)) ** 2 * shared + 2 * alpha * cosines
    found = np.cov(np.asarray(rows)[..., 0], rowvar=False)
    np.testing.assert_allclose(found, shared, atol=4 * v * np.sqrt(2 / 8000))
    # The ends have the normal law of a chain of their own, 1e-4 false alarms in all, and rows have
    # nothing in common: correlations of neighbours among 8000 within 4 standard errors.
    for end in np.asarray(rows)[:, (0, -1), 0].T:
        assert stats.kstest(end, stats.norm(mu, np.sqrt(v)).cdf).pvalue > 5e-5
        assert abs(np.corrcoef(end[:-1], end[1:])[0, 1]) < 4 / np.sqrt(8000)


def test_the_norms_of_a_good_chain_are_those_of_its_noise_levels():
    # On a single point |score| sigma / sqrt(d) is the root of the variance ratio, here 1.2; the
    # ratio of signal to noise is sqrt(alpha / 2) / sigma times that.
    score_fn = gaussian(0.0, 0.0)
    drawn, trace = langevin.annealed_langevin_trace(jax.random.key(0), score_fn, (50, 400), **CHAIN)
    assert (trace.score_norm > 1).all() and (trace.score_norm < 1.22).all()
    relative = STEP / LADDER[-1] ** 2
    np.testing.assert_allclose(trace.snr, np.sqrt(relative / 2) * trace.score_norm, rtol=0.02)
    np.testing.assert_allclose(trace.x_norm / LADDER, trace.score_norm, rtol=0.1)
    again = langevin.annealed_langevin(jax.random.key(0), score_fn, (50, 400), **CHAIN)
    np.testing.assert_allclose(drawn.x, again.x, atol=1e-6)


def test_the_norms_of_a_chain_are_those_of_its_recursion():
    # All coordinates alike: the score before the last move of a level and x after it have known
    # mean squares. Over 50 x 400 numbers a norm has a standard error of 0.5 %; 5 of those, and 1 /
    # (2 d) for the mean of a norm and of its inverse, for 36 comparisons.
    mean, std = 0.5, 0.3
    _, trace = langevin.annealed_langevin_trace(
        jax.random.key(6), gaussian(mean, std), (50, 400), **CHAIN
    )
    (mu, v), expected = (0.0, LADDER[0] ** 2), []
    for sigma, alpha in zip(LADDER, langevin_step_sizes(LADDER, STEP), strict=True):
        target = std**2 + sigma**2
        for _ in range(3):
            score = np.sqrt(v + (mu - mean) ** 2) / target
            mu, v = mu - alpha * (mu - mean) / target, (1 - alpha / target) ** 2 * v + 2 * alpha
        expected.append(
            (sigma, score * sigma, np.sqrt(alpha / 2) * score, np.sqrt(v + mu**2)),
        )
    np.testing.assert_array_equal(trace.sigma, LADDER.astype(np.float32))
    np.testing.assert_allclose(np.stack(trace, axis=1), expected, rtol=0.026)
    # Noise rules at the first levels, where the norm is near 1, and data at the last.
    assert (np.abs(trace.score_norm[:4] - 1) < 0.25).all()
    assert trace.score_norm[-1] < 0.4


def test_the_score_is_asked_at_each_level_in_turn_and_as_often_as_nfe_says():
    asked = []

    def score_fn(x, sigma):
        jax.debug.callback(lambda sigma: asked.append(np.asarray(sigma)), sigma, ordered=True)
        return -x / expand(1 + sigma**2, x)

    drawn = langevin.annealed_langevin(jax.random.key(0), score_fn, (2, 3), **CHAIN)
    jax.effects_barrier()
    assert len(asked) == drawn.nfe == 37
    expected = np.append(np.repeat(LADDER, 3), LADDER[-1]).astype(np.float32)
    np.testing.assert_array_equal(asked, np.stack([expected, expected], axis=1))


def test_a_row_of_an_interpolation_starts_from_its_own_start():
    # Moves too small to leave it: noise of sqrt(2e-12) a move, two moves.
    start = jnp.arange(6.0).reshape(3, 2)
    rows, _ = langevin.interpolate(
        jax.random.key(0), gaussian(0.0, 1.0), (3, 2), 4, sigmas=np.array([0.10001, 0.1]),
        step_size=1e-12, steps_per_level=1, denoise=False, x_init=start,
    )  # fmt: skip
    np.testing.assert_allclose(rows, np.repeat(start[:, None], 4, axis=1), atol=2e-5)


def test_frames_end_where_the_chain_ends():
    frames = langevin.annealed_langevin_frames(
        jax.random.key(3), gaussian(0.5, 0.3), (6, 2), num_frames=4, **CHAIN
    )
    x, _ = langevin.annealed_langevin(jax.random.key(3), gaussian(0.5, 0.3), (6, 2), **CHAIN)
    np.testing.assert_allclose(frames[-1], x, atol=1e-6)
    spread = np.std(frames, axis=(1, 2))
    assert (np.diff(spread) < 0).all()


def test_a_row_does_not_depend_on_its_batch_mates():
    start = jax.random.normal(jax.random.key(0), (4, 3))
    other = start.at[1:].set(100.0)
    chains = [
        langevin.annealed_langevin(
            jax.random.key(1), gaussian(0.0, 1.0), (4, 3), **CHAIN, x_init=x
        ).x
        for x in (start, other)
    ]
    np.testing.assert_array_equal(chains[0][0], chains[1][0])


def test_a_chain_traces_once():
    count = []

    @jax.jit
    def draw(rng):
        count.append(1)
        return langevin.annealed_langevin(rng, gaussian(0.0, 1.0), (2, 3), **CHAIN).x

    first, second = draw(jax.random.key(0)), draw(jax.random.key(1))
    assert len(count) == 1 and (first != second).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": LADDER[::-1].copy()}, "levels that decrease"),
        ({"sigmas": LADDER[:1]}, ">= 2; got 1"),
        ({"sigmas": np.array([1.0, 1.0])}, "levels that decrease"),
        ({"sigmas": np.array([1.0, np.nan, 0.1])}, "levels that decrease"),
        ({"sigmas": np.array([np.inf, 1.0, 0.1])}, "levels that decrease"),
        ({"sigmas": np.array([1.0, -0.1])}, "positive levels"),
        ({"steps_per_level": 0}, "at least 1; got 0"),
        ({"step_size": 0.0}, "step_size > 0; got 0.0"),
        ({"step_size": np.nan}, "step_size > 0; got nan"),
        ({"step_size": 2 * LADDER[-1] ** 2}, "step_size < 2 sigma_L"),
        ({"step_size": 0.03}, "step_size < 2 sigma_L.* = 0.02, or it diverges; got 0.03"),
    ],
)
def test_impossible_chains_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        langevin.annealed_langevin(jax.random.key(0), gaussian(0.0, 1.0), (2, 3), **CHAIN | change)
    assert "\n" not in str(error.value)


def test_an_interpolation_needs_two_ends():
    with pytest.raises(ValueError, match="num >= 2; got 1"):
        langevin.interpolate(jax.random.key(0), gaussian(0.0, 1.0), (2, 3), 1, **CHAIN)
