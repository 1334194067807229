# SPDX-License-Identifier: Apache-2.0
"""Sampling under linear measurements against known conditional laws, for every predictor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian
from scipy import stats

from scorejax.inverse import colorize, conditioned, inpaint, replace_measured, sample_given
from scorejax.linear_operators import (
    average_pool_operator,
    blur_operator,
    fourier_operator,
    grey_operator,
    mask_operator,
)
from scorejax.numerics import expand
from scorejax.samplers import correctors, predictors
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.compilation import optimised_jit
from tests.slow import deep_where, slow_subvp

SDES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=10.0)}
SOME_SLOW = slow_subvp(SDES)
KEY = jax.random.key(0)


OPERATORS = {
    "mask": mask_operator(np.asarray(np.random.default_rng(0).random((4, 4, 1)) < 0.5, float)),
    "grey": grey_operator(),
    "blocks": average_pool_operator(2),
    "blur": blur_operator(np.outer([0.5, 0.3, 0.0, 0.2], [0.6, 0.2, 0.0, 0.2])),
    "lossy blur": blur_operator(np.outer([0.5, 0.25, 0.0, 0.25], [0.5, 0.25, 0.0, 0.25])),
    "fourier": fourier_operator(np.random.default_rng(1).random((4, 4)) < 0.5),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_satisfy_the_penrose_conditions(x64, name):
    # A^+ A A^+ = A^+, A A^+ A = A, and A^+ A is symmetric; for unit vectors, to rounding.
    operator = OPERATORS[name]
    unit = jnp.eye(48).reshape(48, 4, 4, 3)
    projection = operator.project(unit).reshape(48, 48)
    np.testing.assert_allclose(projection, projection.T, atol=1e-14)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-14)
    measured = operator.forward(unit)
    np.testing.assert_allclose(operator.forward(operator.pinv(measured)), measured, atol=1e-14)


@pytest.mark.parametrize("name", OPERATORS)
def test_replacement_is_the_definition(x64, name):
    # x + A^+ (a y + std A z - A x), with matrices formed from unit vectors.
    operator, sde = OPERATORS[name], SDES["vp"]
    x, x_mean, z, data = jax.random.normal(KEY, (4, 2, 4, 4, 3))
    t = jnp.asarray([0.2, 0.7])
    y = operator.forward(data)
    replaced, replaced_mean = replace_measured(operator, sde, y, x, x_mean, t, z)
    scale, std = (value[:, None] for value in sde.marginal(t))
    projection = operator.project(jnp.eye(48).reshape(48, 4, 4, 3)).reshape(48, 48)
    flat = lambda x: x.reshape(2, 48)
    known = scale * flat(data) @ projection
    rest = np.eye(48) - projection
    expected = flat(x) @ rest + known + std * (flat(z) @ projection)
    np.testing.assert_allclose(flat(replaced), expected, atol=1e-13)
    np.testing.assert_allclose(flat(replaced_mean), flat(x_mean) @ rest + known, atol=1e-13)


@pytest.mark.parametrize("sde", SOME_SLOW)
@pytest.mark.parametrize(
    "name", deep_where(lambda name: name != "mask", ["mask", "blocks", "fourier"])
)
def test_the_measurement_holds_at_the_end(sde, name):
    # A x = y to a few roundings of float32 at |y| near 3.
    sde, operator = SDES[sde], OPERATORS[name]
    y = operator.forward(jax.random.normal(KEY, (2, 4, 4, 3)))

    def score_fn(x, t):  # of N(0, I) data
        scale, std = sde.marginal(t)
        return -x / expand(scale**2 + std**2, x)

    for denoise in (True, False):
        x, nfe = sample_given(
            jax.random.key(1), score_fn, (2, 4, 4, 3), sde=sde, operator=operator, y=y,
            corrector=correctors.annealed_langevin, num_steps=25, denoise=denoise,
        )  # fmt: skip
        np.testing.assert_allclose(operator.forward(x), y, atol=3e-6)
        assert int(nfe) == 50


@pytest.mark.parametrize("sde", SOME_SLOW)
@pytest.mark.parametrize(
    ("predictor", "corrector"),
    [
        pytest.param(predictors.euler_maruyama, correctors.no_corrector, marks=pytest.mark.deep),
        (predictors.reverse_diffusion, correctors.annealed_langevin),
        pytest.param(predictors.ancestral, correctors.no_corrector, marks=pytest.mark.deep),
    ],
)
def test_unknown_coordinates_that_are_independent_keep_their_law(sde, predictor, corrector):
    # Independent coordinates: N(1, 0.25) whatever the known ones are. 4000 draws of two unknown
    # coordinates: 4 standard errors, and 3 % for the bias of 200 steps and of the corrector.
    # Law by Kolmogorov-Smirnov at 1e-7, eight cases: a false alarm below 1e-4 with the moments'.
    sde = SDES[sde]
    if sde.name == "subvp" and predictor is predictors.ancestral:
        pytest.skip("sub-VP has no ancestral chain")
    data = Gaussian.isotropic(1.0, 0.5, 4)
    image, mask = jnp.full((4000, 4), 2.0), np.array([1.0, 0.0, 1.0, 0.0])
    fill = functools.partial(
        inpaint, sde=sde, predictor=predictor, corrector=corrector, num_steps=200, snr=0.1
    )
    x = np.asarray(optimised_jit(lambda rng: fill(rng, data.score_fn(sde), image, mask).x)(KEY))
    np.testing.assert_array_equal(x[:, [0, 2]], 2.0)
    unknown = x[:, [1, 3]].ravel()
    assert abs(unknown.mean() - 1) < 4 * 0.5 / np.sqrt(8000) + 0.01
    assert abs(unknown.var() / 0.25 - 1) < 4 * np.sqrt(2 / 8000) + 0.03
    assert stats.kstest(unknown, stats.norm(1, 0.5).cdf).pvalue > 1e-7


@pytest.mark.deep
def test_correlated_coordinates_follow_the_known_ones_with_a_bias_that_is_reported(
    record_property,
):
    # Correlation 0.8: given x_0 = 1.5 the exact law of x_1 is N(1.2, 0.36). Replacement is an
    # approximation; it must go most of the way from N(0, 1), and its bias is recorded, not hidden.
    data = Gaussian(np.zeros(2), np.array([[1.0, 0.8], [0.8, 1.0]]))
    sde = SDES["vp"]
    image, mask = jnp.full((4000, 2), 1.5), np.array([1.0, 0.0])
    fill = functools.partial(inpaint, sde=sde, predictor=predictors.euler_maruyama, num_steps=200)
    x = np.asarray(jax.jit(lambda rng: fill(rng, data.score_fn(sde), image, mask).x)(KEY))[:, 1]
    record_property("mean, exact 1.2", float(x.mean()))
    record_property("variance, exact 0.36", float(x.var()))
    assert 0.6 < x.mean() < 1.3
    assert 0.3 < x.var() < 0.8


def test_colorized_images_have_the_grey_that_was_asked_for():
    sde = SDES["ve"]
    grey = jax.random.uniform(KEY, (2, 4, 4, 1))
    x, _ = colorize(jax.random.key(1), lambda x, t: -x / 101, grey, sde=sde, num_steps=20)
    assert x.shape == (2, 4, 4, 3)
    # The mean of three channels in float32 after values of up to 30.
    np.testing.assert_allclose(x.mean(axis=-1, keepdims=True), grey, atol=3e-6)


def test_the_noise_of_the_last_step_does_not_stay_in_the_unknown_part():
    # One predictor call from a given state: in x_mean the unknown part is the update's own mean.
    sde, operator = SDES["ve"], mask_operator(np.array([1.0, 0.0]))
    score = lambda x, t: -x
    x, t, y = jnp.ones((3, 2)), jnp.full(3, 0.01), jnp.full((3, 2), 0.3)
    update = conditioned(predictors.reverse_diffusion, operator, y)
    first, second = (update(jax.random.key(seed), sde, score, x, t, 10) for seed in (1, 2))
    np.testing.assert_array_equal(first.x_mean, second.x_mean)
    _, expected = predictors.reverse_diffusion_step(sde, score, x, t, 0 * x, 10)
    np.testing.assert_allclose(first.x_mean[:, 1], expected[:, 1], rtol=1e-6)
    np.testing.assert_allclose(first.x_mean[:, 0], 0.3, rtol=1e-6)
    assert not np.any(first.x == second.x)
