# SPDX-License-Identifier: Apache-2.0
"""SDEs and samplers against numbers computed with the official implementation.

float32 is held to the tolerance in the file, which is ten times the official single-against-double
difference; float64 to 1e-8 of the row's largest entry. Files are (b, c, h, w); the library is
(b, h, w, c).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import schedules
from scorejax.numerics import expand
from scorejax.samplers import correctors, predictors
from scorejax.sdes import (
    VESDE,
    VPSDE,
    SubVPSDE,
    probability_flow,
    reverse_drift,
    table_index,
)

PRECISIONS = [jnp.float32, jnp.float64]
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


@pytest.fixture(params=PRECISIONS, ids=["float32", "float64"])
def dtype(request):
    """Each test in single and in double precision."""
    with jax.enable_x64(request.param == jnp.float64):
        yield request.param


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


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda sde: sde.name)
@pytest.mark.parametrize("kind", ["cont", "disc"])
def test_single_updates(golden, dtype, sde, kind):
    file = golden("d_sampler_steps")
    names = [name[6:-2] for name in file if re.fullmatch(f"out64/{sde.name}_{kind}_.*_x", name)]
    assert names or (sde.name, kind) == ("subvp", "disc")
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
