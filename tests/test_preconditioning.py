# SPDX-License-Identifier: Apache-2.0
"""Preconditioners and denoiser losses: official numbers, closed forms, and the way to scores.

Single precision is held to the tolerance in the file, ten times the official rounding error;
double precision to 1e-8 of the largest entry of each example.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from scorejax import interop, preconditioning
from scorejax.numerics import expand, mean_except_batch, sum_except_batch
from scorejax.objectives import denoiser as objectives
from scorejax.preconditioning import noise_level, preconditioned
from scorejax.sdes import VESDE, VPSDE, SubVPSDE
from tests.slow import deep_where

SDES = [VPSDE(), SubVPSDE(), VESDE()]
by_name = pytest.mark.parametrize("sde", SDES, ids=lambda sde: sde.name)
COEFFICIENTS = {
    name: getattr(preconditioning, f"{name}_coefficients") for name in ("edm", "vp", "ve")
}
TINY = {
    "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
    "img_resolution": 8, "embedding_type": "positional", "resample_filter": [1, 1],
}  # fmt: skip


def nhwc(a):
    return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def as_array(a):
    return jnp.asarray(nhwc(a), float)


def assert_golden(value, file, name, precision):
    expected, tolerance = nhwc(file[f"out64/{name}"]), nhwc(file[f"tol/{name}"])
    if precision == "float64":
        tolerance = 1e-8 * np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
    assert value.shape == expected.shape
    assert np.all(np.abs(np.asarray(value, np.float64) - expected) <= tolerance), name


@pytest.mark.parametrize("name", deep_where(lambda name: name != "edm", COEFFICIENTS))
def test_a_preconditioned_network_gives_the_official_denoiser(golden, precision, name):
    file = golden("i_precond")
    prefix = f"params/{name}."
    state = {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}
    module, variables = interop.load_torch("edm/song_unet", state, **TINY)
    seen = {}

    def network(x, label):
        seen.update(net_input=x, c_noise=label)
        return jax.jit(module.apply)(variables, x, label)

    x, sigma = as_array(file["in/x"]), as_array(file["in/sigma"])
    value = preconditioned(network, COEFFICIENTS[name])(x, sigma)
    assert_golden(value, file, name, precision)
    assert_golden(seen["net_input"], file, f"{name}_net_input", precision)
    assert_golden(seen["c_noise"], file, f"{name}_c_noise", precision)


def test_the_vp_noise_levels_are_the_official_ones(golden, precision):
    file = golden("i_precond")
    assert_golden(noise_level(VPSDE(), as_array(file["in/t"])), file, "vp_sigma_of_t", precision)
    low, high = noise_level(VPSDE(), jnp.asarray([1e-5, 1.0]))
    assert_golden(low, file, "vp_sigma_min", precision)
    assert_golden(high, file, "vp_sigma_max", precision)


def analytic_denoiser(x, sigma):
    """The denoiser of the official runs, with x (b, h, w, c) and sigma (b,)."""
    sigma = expand(sigma, x)
    wave = 0.3 * sigma * jnp.sin(x / (1 + sigma))
    return (0.25 * x + wave + 0.02 * jnp.roll(x, 1, 2)) / (sigma**2 + 0.25)


LOSSES = {
    "vp": ("u", objectives.vp_level, objectives.noise_weighting),
    "ve": ("u", objectives.ve_level, objectives.noise_weighting),
    "edm": ("g", objectives.log_normal_level, objectives.edm_weighting),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_official_ones(golden, precision, name):
    file = golden("i_losses")
    draw, level, weighting = LOSSES[name]
    sigma = level(as_array(file[f"in/{draw}"][:, 0, 0, 0]))
    # The official loss is one number for each pixel: those of one row are picked by `reduction`.
    loss = functools.partial(
        objectives.denoiser_error, analytic_denoiser, sigma, as_array(file["in/z"]),
        as_array(file["in/x"]), weighting=weighting,
    )  # fmt: skip
    pixels = np.ndindex(4, 4, 3)
    pick = lambda square, index: square[(slice(None), *index)]
    value = np.stack([loss(reduction=functools.partial(pick, index=i)) for i in pixels], axis=1)
    assert_golden(value.reshape(4, 4, 4, 3), file, name, precision)
    # float32 adds 48 numbers with an error of 1e-7 of their sum each.
    mean = loss(reduction=mean_except_batch)
    np.testing.assert_allclose(mean, value.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_inputs_have_unit_variance_and_the_trivial_network_is_consistent(name, x64):
    sigma = jnp.geomspace(0.002, 80, 9)
    c = COEFFICIENTS[name](sigma)
    data_variance = {"edm": 0.25, "vp": 1.0}.get(name)
    if data_variance:
        np.testing.assert_allclose(c.into**2 * (data_variance + sigma**2), 1, rtol=1e-12)
    if name == "edm":
        # The target (x_0 - c_skip x) / c_out has unit variance too.
        target = ((1 - c.skip) ** 2 * data_variance + c.skip**2 * sigma**2) / c.out**2
        np.testing.assert_allclose(target, 1, rtol=1e-12)
        np.testing.assert_allclose(objectives.edm_weighting(sigma) * c.out**2, 1, rtol=1e-12)
    else:
        # A perfect noise prediction leaves the data; the weighting makes its error's weight one.
        sign = {"vp": 1, "ve": -1}[name]
        np.testing.assert_allclose(c.skip * sigma + c.out * sign, 0, atol=1e-13)
        np.testing.assert_allclose(objectives.noise_weighting(sigma) * c.out**2, 1, rtol=1e-12)


@by_name
def test_times_of_noise_levels_are_the_inverse(sde, x64):
    t = jnp.geomspace(1e-5, 1.0, 30)
    # Near t = 1e-5 the level of VP is 1e-3 and its square has lost six of sixteen digits; none of
    # it shows, as log1p and expm1 keep them: ten roundings.
    np.testing.assert_allclose(sde.time_of_sigma(noise_level(sde, t)), t, rtol=2e-12)


@by_name
def test_a_score_and_its_denoiser_go_back_and_forth(sde, x64):
    data = Gaussian.isotropic(0.4, 0.5, 3)
    t = jnp.asarray([1e-3, 0.1, 0.5, 1.0])
    x = jax.random.normal(jax.random.key(0), (4, 3))
    score_fn = data.score_fn(sde)
    denoiser = preconditioning.score_fn_to_denoiser(sde, score_fn)
    sigma = noise_level(sde, t)
    expected = 0.4 + 0.25 / (0.25 + sigma**2)[:, None] * (x - 0.4)
    np.testing.assert_allclose(denoiser(x, sigma), expected, rtol=1e-9)
    # Dividing by std^2 = 1e-8 (sub-VP at t = 1e-3) costs 8 of the 16 digits.
    again = preconditioning.denoiser_to_score_fn(sde, denoiser)
    np.testing.assert_allclose(again(x, t), score_fn(x, t), rtol=1e-6)


@pytest.mark.parametrize(
    ("levels", "weighting"),
    [
        (objectives.log_normal_levels, objectives.edm_weighting),
        (objectives.vp_levels, objectives.noise_weighting),
        (objectives.ve_levels, objectives.noise_weighting),
    ],
    ids=["edm", "vp", "ve"],
)
def test_the_loss_of_the_exact_denoiser_is_the_known_minimum(levels, weighting):
    # What the noise hides of x ~ N(0, s^2): s^2 sigma^2 / (s^2 + sigma^2) for each dimension.
    s, num = 0.5, 20_000
    x = s * jax.random.normal(jax.random.key(0), (num, 4))
    denoiser = lambda x, sigma: x * s**2 / (s**2 + expand(sigma, x) ** 2)
    loss = objectives.denoiser_matching(
        denoiser, jax.random.key(1), x, levels=levels, weighting=weighting,
        reduction=sum_except_batch,
    )  # fmt: skip
    sigma = levels(jax.random.key(2), (num,))
    expected = 4 * weighting(sigma) * s**2 * sigma**2 / (s**2 + sigma**2)
    error = np.sqrt((np.var(loss) + np.var(expected)) / num)
    assert abs(loss.mean() - expected.mean()) < 4 * error


def test_rows_draw_from_their_own_keys():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    keys = jax.random.split(jax.random.key(1), 4)
    denoiser = lambda x, sigma: 0.5 * x
    whole = objectives.denoiser_matching(denoiser, keys, x)
    half = objectives.denoiser_matching(denoiser, keys[2:], x[2:])
    # The same numbers in arrays of another size: one rounding.
    np.testing.assert_allclose(whole[2:], half, rtol=1e-6)
