# SPDX-License-Identifier: Apache-2.0
"""Conversions against closed forms and each other; the label and scale of every convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import parameterize
from scorejax.numerics import expand
from scorejax.schedules import geometric_sigmas
from scorejax.sdes import VESDE, VPSDE, SubVPSDE

SDES = [VPSDE(), SubVPSDE(), VESDE()]
KINDS = ["noise", "denoiser"]
TIMES = np.array([1e-3, 0.1, 0.37, 0.5, 0.9, 1.0])


def to_score(kind):
    return getattr(parameterize, f"{kind}_to_score")


def gaussian_posterior(sde, t, x, mean=0.3, data_std=0.5):
    """Means of noise and x_0 given x_t, and the score, for x_0 ~ N(mean, data_std^2)."""
    scale, std = (expand(v, x) for v in sde.marginal(t))
    variance = scale**2 * data_std**2 + std**2
    deviation = x - scale * mean
    denoiser = mean + scale * data_std**2 / variance * deviation
    noise = std / variance * deviation
    return {"noise": noise, "denoiser": denoiser}, -deviation / variance


@pytest.mark.parametrize("sde", SDES, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_give_the_posterior_means_of_gaussian_data(sde, kind, x64):
    t = jnp.asarray(TIMES)
    x = jax.random.normal(jax.random.key(0), (len(TIMES), 2, 3))
    means, score = gaussian_posterior(sde, t, x)
    # Dividing by std^2 = 1e-8 (sub-VP at t = 1e-3) costs 8 of the 16 digits.
    np.testing.assert_allclose(to_score(kind)(sde, t, x, means[kind]), score, rtol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: s.name)
def test_tweedies_formula_gives_the_posterior_mean_of_gaussian_data(sde, x64):
    t = jnp.asarray(TIMES)
    x = jax.random.normal(jax.random.key(0), (len(TIMES), 2, 3))
    means, score = gaussian_posterior(sde, t, x)
    denoised = parameterize.score_to_denoiser(sde, t, x, score)
    np.testing.assert_allclose(denoised, means["denoiser"], rtol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: s.name)
def test_there_and_back_is_the_identity_in_single_precision(sde):
    t = jnp.asarray(TIMES[1:], jnp.float32)
    x = jax.random.normal(jax.random.key(0), (len(t), 4))
    value = jax.random.normal(jax.random.key(1), x.shape)
    score = parameterize.denoiser_to_score(sde, t, x, value)
    back = parameterize.score_to_denoiser(sde, t, x, score)
    # Two roundings of 6e-8 of |x| <= 4, divided by the scale (>= 6.6e-3) or times sigma (<= 50).
    np.testing.assert_allclose(back, value, atol=1e-4)


def test_conversions_compose(x64):
    sde, t = SubVPSDE(), jnp.asarray(TIMES[1:])
    x = jax.random.normal(jax.random.key(0), (len(t), 4))
    means, _ = gaussian_posterior(sde, t, x)
    score = parameterize.noise_to_score(sde, t, x, means["noise"])
    denoised = parameterize.score_to_denoiser(sde, t, x, score)
    np.testing.assert_allclose(denoised, means["denoiser"], rtol=1e-9)


def seen_label(make, t):
    """The label that a score function hands to its network."""
    labels = []

    def network(x, label):
        labels.append(label)
        return x

    make(network)(jnp.ones((len(t), 2)), jnp.asarray(t, jnp.float32))
    return np.asarray(labels[0])


@pytest.mark.parametrize("num_scales", [10, 1000])
def test_each_convention_hands_its_label_to_the_network(num_scales):
    t = [0.0, 0.25, 1.0]
    vp, ve = VPSDE(beta_max=5.0), VESDE()
    label = seen_label(lambda n: parameterize.noise_prediction(vp, n), t)
    np.testing.assert_allclose(label, [0.0, 249.75, 999.0], rtol=1e-6)

    label = seen_label(lambda n: parameterize.discrete_noise_prediction(vp, n, num_scales), t)
    np.testing.assert_allclose(label, [0.0, 0.25 * (num_scales - 1), num_scales - 1], rtol=1e-6)

    label = seen_label(lambda n: parameterize.sigma_conditioned(ve, n), t)
    np.testing.assert_allclose(label, [0.01, 0.01 * 5000**0.25, 50.0], rtol=1e-6)

    label = seen_label(lambda n: parameterize.discrete_sigma_conditioned(ve, n, num_scales), t)
    assert label.dtype == np.int32
    np.testing.assert_array_equal(label, [num_scales - 1, round(0.75 * (num_scales - 1)), 0])


def test_between_two_levels_the_noise_is_that_of_the_nearest(x64):
    # A point mass at 0: the score is -x / sigma^2, the noise x / sigma.
    num_scales, x = 10, jnp.ones((3, 2))
    ve = VESDE(0.01, 1.0)
    sigmas = geometric_sigmas(0.01, 1.0, num_scales)
    network = lambda x, label: -x / jnp.asarray(sigmas)[label][:, None] ** 2
    t = jnp.asarray([0.0, 4 / 9, 0.4])  # two levels, and a place between the levels 5 and 6
    score = parameterize.sigma_conditioned_between_levels(ve, network, num_scales)(x, t)
    sigma = np.asarray(ve.sigma(t))[:, None]
    np.testing.assert_allclose(score[:2], -x[:2] / sigma[:2] ** 2, rtol=1e-12)
    np.testing.assert_allclose(score[2:] * sigma[2:], -x[2:] / sigmas[5], rtol=1e-12)


def test_a_network_that_predicts_the_mean_noise_yields_the_score(x64):
    sde, t = VPSDE(), jnp.asarray(TIMES)
    x = jax.random.normal(jax.random.key(0), (len(t), 4))
    network = lambda x, label: gaussian_posterior(sde, label / 999, x)[0]["noise"]
    score_fn = parameterize.noise_prediction(sde, network)
    # Dividing by std = 0.01 costs two of the 16 digits.
    np.testing.assert_allclose(score_fn(x, t), gaussian_posterior(sde, t, x)[1], rtol=1e-9)


def test_division_by_sigma_and_by_level():
    x, sigmas = jnp.ones((2, 3)), jnp.array([4.0, 2.0, 1.0])
    network = lambda x, label: 8 * x
    by_sigma = parameterize.divided_by_sigma(network)(x, jnp.array([2.0, 4.0]))
    np.testing.assert_array_equal(by_sigma, [[4.0] * 3, [2.0] * 3])
    by_level = parameterize.divided_by_level_sigma(network, sigmas)(x, jnp.array([2, 0]))
    np.testing.assert_array_equal(by_level, [[8.0] * 3, [2.0] * 3])


def test_ddpm_marginals_follow_the_chain_and_approach_the_sde():
    sde, num_scales = VPSDE(), 1000
    scale, std = parameterize.ddpm_marginals(sde, num_scales)
    betas = np.linspace(0.1 / num_scales, 20 / num_scales, num_scales)
    a, variance = 1.0, 0.0
    for i, beta in enumerate(betas):
        a, variance = np.sqrt(1 - beta) * a, (1 - beta) * variance + beta
        np.testing.assert_allclose([scale[i], std[i]], [a, np.sqrt(variance)], rtol=1e-11)
    # Five digits each: exp(-B(1)) = 4.3186e-5, and the chain stops O(1 / num_scales) short of it.
    np.testing.assert_allclose(scale[-1] ** 2, 4.0358e-5, rtol=2e-5)
    fine = parameterize.ddpm_marginals(sde, 100_000)[0][-1] ** 2
    np.testing.assert_allclose(fine, np.exp(-10.05), rtol=1e-3)


def test_a_chain_too_short_for_its_betas_is_refused():
    with pytest.raises(ValueError, match=r"beta_max=20\.0, num_scales=20"):
        parameterize.discrete_noise_prediction(VPSDE(), lambda x, label: x, 20)
