# SPDX-License-Identifier: Apache-2.0
"""SDEs and samplers against numbers computed with the official implementation.

float32 is held to the tolerance in the file, which is ten times the official single-against-double
difference; float64 to 1e-8 of the row's largest entry. Files are (b, c, h, w); the library is
(b, h, w, c).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import schedules
from scorejax.inverse import replace_measured
from scorejax.linear_operators import colour_matrix, grey_operator, mask_operator
from scorejax.numerics import expand
from scorejax.samplers import correctors, predictors
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import Move
from scorejax.samplers.probability_flow import decode
from scorejax.sdes import (
    VESDE,
    VPSDE,
    SubVPSDE,
    probability_flow,
    reverse_drift,
    table_index,
)
from tests.slow import SINGLE_AND_DOUBLE

STEPS = 1000


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def assert_golden(value, file, name, *, atol=0.0):
    """Compares a (b, h, w, c) or (b,) result with `name` at the tolerance for its precision."""
    expected, tolerance = file[f"out64/{name}"], file[f"tol/{name}"]
    value = np.asarray(value)
    if expected.ndim > 1:
        expected = channels_last(expected)
    if value.dtype == np.float64:
        axes = tuple(range(1, expected.ndim))
        largest = np.max(np.abs(expected), axis=axes, keepdims=True) if axes else np.abs(expected)
        tolerance = 1e-8 * largest
    excess = np.abs(value - expected) - tolerance - atol
    assert np.all(excess <= 0), f"{name}: worst excess {excess.max():.2e}"


@pytest.fixture(params=SINGLE_AND_DOUBLE)
def dtype(request):
    """Each test in single and in double precision."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


def analytic_net(x, label):
    """The network of the official runs, with x (b, h, w, c) and label (b,)."""
    label = expand(label, x)
    return 0.3 * x + 0.1 * jnp.sin(0.05 * label) + 0.05 * jnp.sin(3 * x) + 0.02 * jnp.roll(x, 1, 2)


def continuous_score(sde):
    """What the official score wrapper makes of the network, continuous time."""

    def score(x, t):
        std = expand(sde.marginal(t)[1], x)
        if sde.name == "ve":
            return -analytic_net(x, std.reshape(-1)) / (1 + std**2)
        return -analytic_net(x, 999 * t) / std

    return score


def discrete_score(sde, num_scales=STEPS):
    """What the official score wrapper makes of the network, discrete time."""
    products = schedules.alpha_products(schedules.linear_betas(0.1, 20.0, num_scales))

    def score(x, t):
        if sde.name == "ve":
            return -analytic_net(x, jnp.round((1 - t) * (num_scales - 1)))
        std = jnp.asarray(np.sqrt(1 - products), x.dtype)[table_index(t, num_scales)]
        return -analytic_net(x, t * (num_scales - 1)) / expand(std, x)

    return score


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda sde: sde.name)
def test_sde_definitions(golden, dtype, sde):
    file = golden("b_sde")
    t, x = jnp.asarray(file["in/t"], dtype), jnp.asarray(channels_last(file["in/x"]), dtype)
    score = lambda x, t: -x / expand(1 + t, x) + 0.1 * jnp.sin(3 * x)
    scale, std = sde.marginal(t)
    results = {
        "mean": expand(scale, x) * x,
        "std": std,
        "drift": sde.drift(x, t),
        "diffusion": sde.diffusion(t),
        "prior_logp": sde.prior_log_prob(50 * x if sde.name == "ve" else x),
        "revsde_drift": reverse_drift(sde, score)(x, t),
        "revode_drift": probability_flow(sde, score)(x, t),
    }
    step_scale, step_std = (expand(value, x) for value in sde.transition(t, STEPS))
    forward = (step_scale - 1) * x
    results |= {
        "disc_f": forward,
        "disc_G": step_std.reshape(-1),
        "revsde_disc_f": forward - step_std**2 * score(x, t),
        "revode_disc_f": forward - step_std**2 * score(x, t) / 2,
    }
    # The library keeps the factor of x, not the increment f: to compare f costs one rounding of x.
    rounding = np.finfo(dtype).eps * float(jnp.max(jnp.abs(x)))
    for name, value in results.items():
        atol = rounding if name.endswith("disc_f") else 0.0
        assert_golden(value, file, f"{sde.name}_{name}", atol=atol)


def test_discrete_tables_are_the_chain(golden, x64):
    file = golden("b_sde")
    t = jnp.arange(STEPS) / (STEPS - 1)
    scale, std = VPSDE().transition(t, STEPS)
    np.testing.assert_allclose(std**2, file["out64/vp_discrete_betas"], rtol=1e-8)
    np.testing.assert_allclose(np.cumprod(scale**2), file["out64/vp_alphas_cumprod"], rtol=1e-8)
    np.testing.assert_allclose(VESDE().sigma(t), file["out64/ve_discrete_sigmas"], rtol=1e-8)


PREDICTOR_STEPS = {
    "euler_maruyama": predictors.euler_maruyama_step,
    "reverse_diffusion": predictors.reverse_diffusion_step,
    "ancestral_sampling": predictors.ancestral_step,
}
CORRECTOR_STEPS = {
    "langevin": correctors.batch_langevin_step,
    "ald": correctors.annealed_langevin_step,
}


@pytest.mark.parametrize(
    ("sde", "kind"),
    [
        (VPSDE(), "cont"),
        (VPSDE(), "disc"),
        (SubVPSDE(), "cont"),
        (VESDE(), "cont"),
        (VESDE(), "disc"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_single_updates(golden, dtype, sde, kind):
    file = golden("d_sampler_steps")
    names = [name[6:-2] for name in file if re.fullmatch(f"out64/{sde.name}_{kind}_.*_x", name)]
    assert names
    score = continuous_score(sde) if kind == "cont" else discrete_score(sde)
    t, x_in = (jnp.asarray(channels_last(file[f"in/{k}"]) if k == "x" else file["in/t"], dtype)
               for k in ("t", "x"))  # fmt: skip
    z = jnp.asarray(channels_last(file["in/z"]), dtype)
    for name in names:
        update = name.removeprefix(f"{sde.name}_{kind}_")
        if update in PREDICTOR_STEPS:
            x, x_mean = PREDICTOR_STEPS[update](sde, score, x_in, t, z[0], STEPS)
        elif update == "reverse_diffusion_ode":
            flow = predictors.reverse_diffusion_flow
            x, x_mean, _ = flow(jax.random.key(0), sde, score, x_in, t, STEPS)
        else:
            corrector, inner = update.rsplit("_n", 1)
            x = x_in
            for noise in z[: int(inner)]:
                step = CORRECTOR_STEPS[corrector]
                x, x_mean = step(sde, score, x, t, noise, snr=0.17, num_steps=STEPS)
        assert_golden(x, file, f"{name}_x")
        assert_golden(x_mean, file, f"{name}_xmean")


SDES = {
    "vp": VPSDE(beta_max=3.0),
    "subvp": SubVPSDE(beta_max=3.0),
    "ve": VESDE(),
}


def replayed_predictor(step, z, draw):
    """A predictor that takes its noise from z at index draw(t) instead of drawing it."""

    def predictor(rng, sde, score_fn, x, t, num_steps):
        return Move(*step(sde, score_fn, x, t, z[draw(t)], num_steps), nfe=1)

    return predictor


def replayed_corrector(step, z, draw):
    """A corrector whose num_inner moves take their noise from z, beginning at index draw(t)."""

    def corrector(rng, sde, score_fn, x, t, *, snr, num_inner, num_steps):
        for inner in range(num_inner):
            noise = z[draw(t) + inner]
            x, x_mean = step(sde, score_fn, x, t, noise, snr=snr, num_steps=num_steps)
        return Move(x, x_mean, nfe=num_inner)

    return corrector


def step_number(sde, t, num_steps):
    """The index of t in the sampling grid."""
    span = sde.t_max - sde.sampling_t_min
    return jnp.round((sde.t_max - t[0]) / span * (num_steps - 1)).astype(int)


CHAINS = [
    ("vp", "euler_maruyama", "none", 1),
    ("vp", "reverse_diffusion", "langevin", 1),
    ("vp", "ancestral_sampling", "none", 1),
    ("subvp", "euler_maruyama", "none", 1),
    ("subvp", "reverse_diffusion", "none", 1),
    ("ve", "reverse_diffusion", "langevin", 2),
    ("ve", "reverse_diffusion", "ald", 2),
    ("ve", "ancestral_sampling", "langevin", 1),
    ("ve", "none", "ald", 2),
]


@pytest.mark.parametrize(
    ("name", "predictor", "corrector", "num_inner"), CHAINS, ids=lambda value: str(value)
)
def test_whole_chains(golden, dtype, name, predictor, corrector, num_inner):
    file, sde, num_steps = golden("d_pc_chains"), SDES[name], 6
    z = jnp.asarray(channels_last(file["in/z"]), dtype)
    per_step = (0 if corrector == "none" else num_inner) + (predictor != "none")
    first = lambda t: 1 + per_step * step_number(sde, t, num_steps)
    last = lambda t: first(t) + per_step - 1
    run = jax.jit(
        functools.partial(
            predictor_corrector,
            sde=sde,
            predictor=predictors.no_predictor
            if predictor == "none"
            else replayed_predictor(PREDICTOR_STEPS[predictor], z, last),
            corrector=correctors.no_corrector
            if corrector == "none"
            else replayed_corrector(CORRECTOR_STEPS[corrector], z, first),
            num_steps=num_steps,
            snr=0.16,
            num_inner=num_inner,
            x_init=z[0] * (50.0 if name == "ve" else 1.0),
        ),
        static_argnums=(1, 2),
        static_argnames="denoise",
    )
    for suffix, denoise in (("raw", False), ("den", True)):
        x, nfe = run(jax.random.key(0), continuous_score(sde), z[0].shape, denoise=denoise)
        key = f"{name}_{predictor}_{corrector}{num_inner}_{suffix}"
        assert_golden((x + 1) / 2, file, key)
    assert int(nfe) == num_steps * per_step


def with_measurement(update, operator, y, z, draw):
    """A replayed update after which the measurement is imposed, with the noise z[draw(t)]."""

    def measured(rng, sde, score_fn, x, t, *args, **kwargs):
        moved = update(rng, sde, score_fn, x, t, *args, **kwargs)
        pair = replace_measured(operator, sde, y, moved.x, moved.x_mean, t, z[draw(t)])
        return Move(*pair, moved.nfe)

    return measured


def measurement(task, file, z, prior):
    """Operator, measurement, its noise at each draw, and the start of a chain from the prior."""
    data, mask, grey = (
        jnp.asarray(channels_last(file[f"in/{key}"]), z.dtype) for key in ("data", "mask", "gray")
    )
    if task == "inpaint":
        operator = mask_operator(mask)
        y = operator.forward(data)
        return operator, y, z, y + (1 - mask) * prior
    operator = grey_operator()
    y = operator.forward(grey)
    # The official code draws this noise in the rotated channels, and cuts the first *colour*
    # channel out of the prior before it rotates. Only the start differs from ours by that.
    rotation = jnp.asarray(file["out64/M"], z.dtype)
    rest = (prior * jnp.asarray([[[[0.0, 1.0, 1.0]]]], z.dtype)) @ rotation
    return operator, y, z @ rotation.T, operator.pinv(y) + rest @ rotation.T


@pytest.mark.deep
@pytest.mark.parametrize("name", ["vp", "ve"])
@pytest.mark.parametrize("task", ["inpaint", "colour"])
def test_inpainting_and_colorization(golden, dtype, name, task):
    file, sde, num_steps = golden("d_inpaint_colour"), SDES[name], 5
    z = jnp.asarray(channels_last(file["in/z"]), dtype)
    prior = z[0] * (50.0 if name == "ve" else 1.0)
    operator, y, measuring_noise, x_init = measurement(task, file, z, prior)
    num_updates = 4 if name == "ve" else 3
    first = lambda t: 1 + num_updates * step_number(sde, t, num_steps)
    at = lambda offset: lambda t: first(t) + offset
    if name == "ve":
        corrector = replayed_corrector(correctors.batch_langevin_step, z, at(0))
        predictor = replayed_predictor(predictors.reverse_diffusion_step, z, at(2))
    else:
        corrector = correctors.no_corrector
        predictor = replayed_predictor(predictors.euler_maruyama_step, z, at(1))
    chain = jax.jit(
        functools.partial(
            predictor_corrector,
            sde=sde,
            predictor=with_measurement(
                predictor, operator, y, measuring_noise, at(num_updates - 1)
            ),
            corrector=with_measurement(
                corrector, operator, y, measuring_noise, at(num_updates - 3)
            ),
            num_steps=num_steps,
            snr=0.16,
            x_init=x_init,
        ),
        static_argnums=(1, 2),
        static_argnames="denoise",
    )
    results = {
        denoise: chain(jax.random.key(0), continuous_score(sde), x_init.shape, denoise=denoise).x
        for denoise in (False, True)
    }
    # The official colour matrix is a constant rounded to about 1e-7, ours is exact.
    atol = 3e-7 * float(jnp.max(jnp.abs(x_init))) if task == "colour" else 0.0
    assert_golden(results[False], file, f"{task}_{name}_raw", atol=atol)
    # Denoised, the known part agrees. The official code leaves the last noise in the unknown part:
    # there its denoised result is its raw result, ours is not.
    known = operator.project(results[True])
    official = jnp.asarray(channels_last(file[f"out64/{task}_{name}_den"]), dtype)
    official_raw = jnp.asarray(channels_last(file[f"out64/{task}_{name}_raw"]), dtype)
    tolerance = 1e-5 * float(jnp.max(jnp.abs(official)))
    np.testing.assert_allclose(known, operator.project(official), atol=tolerance)
    unknown = lambda x: x - operator.project(x)
    np.testing.assert_allclose(unknown(official), unknown(official_raw), atol=tolerance)
    assert float(jnp.max(jnp.abs(unknown(results[True] - official)))) > tolerance


def test_colour_matrix(golden):
    file, matrix = golden("d_inpaint_colour"), colour_matrix()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-15)
    # The official constant is rounded to about 1e-7.
    np.testing.assert_allclose(np.abs(matrix), np.abs(file["out64/M"]), atol=1e-6)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_probability_flow_samples(golden, dtype, name):
    file = golden(f"d_ode_likelihood_{name}")
    sde = VPSDE() if name == "vp" else VESDE()
    z = jnp.asarray(channels_last(file["in/z"]), dtype) * (50.0 if name == "ve" else 1.0)
    score_fn = continuous_score(sde)
    tight = 1e-10 if dtype == jnp.float64 else 1e-5
    solve = functools.partial(decode, score_fn, z, sde=sde, rtol=tight, atol=tight)
    x, _ = jax.jit(solve)()
    tight_sample = channels_last(file["out64/sample_tight"])
    if dtype == jnp.float64:
        # The reference is DOP853 at 1e-9 and 1e-10: 1e-6 of the largest entry as its notes ask.
        np.testing.assert_allclose(x, tight_sample, atol=1e-6 * np.abs(tight_sample).max())
        return
    # The official solver at 1e-5 is itself off by this much; ours takes other steps.
    official_error = np.max(np.abs(channels_last(file["out64/sample"]) - tight_sample))
    assert np.max(np.abs(x - tight_sample)) < 2 * official_error


@pytest.mark.deep
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_the_final_denoising_of_the_probability_flow(golden, dtype, name):
    file = golden(f"d_ode_likelihood_{name}")
    sde = VPSDE() if name == "vp" else VESDE()
    x = jnp.asarray(channels_last(file["out64/sample"]), dtype)
    score_fn = continuous_score(sde)
    t = jnp.full(x.shape[:1], sde.sampling_t_min, dtype)
    _, x_mean = predictors.reverse_diffusion_step(sde, score_fn, x, t, jnp.zeros_like(x), STEPS)
    assert_golden(x_mean, file, "sample_denoised")
    solve = functools.partial(decode, score_fn, x, sde=sde, rtol=1e-3, atol=1e-3)
    plain, denoised = solve().x, solve(denoise=True).x
    _, expected = predictors.reverse_diffusion_step(sde, score_fn, plain, t, 0 * x, STEPS)
    np.testing.assert_array_equal(denoised, expected)
