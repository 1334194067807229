# SPDX-License-Identifier: Apache-2.0
"""Score conventions, losses and likelihoods against numbers of the official implementations.

The files are channels first; everything here is channels last. Single precision is held to the
tolerance in the file; double precision to 1e-8 of the largest entry of the row, and to 1e-6 where
the reference forms 1 - exp(-small).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import likelihood, parameterize
from scorejax.numerics import expand, mean_except_batch
from scorejax.objectives import denoising
from scorejax.sdes import VESDE, VPSDE, SubVPSDE, probability_flow, table_index

RNG = jax.random.key(0)
NUM_SCALES = 1000
VP, SUBVP, VE = VPSDE(), SubVPSDE(), VESDE()
COEFFICIENTS = (0.3, 0.1, 0.05, 0.02)


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def noise_network(x, label, coefficients=COEFFICIENTS):
    """The analytic network of the golden files; a roll on width is a roll on axis 2 here."""
    a, b, c, d = coefficients
    label = expand(jnp.sin(0.05 * label.astype(x.dtype)), x)
    return a * x + b * label + c * jnp.sin(3 * x) + d * jnp.roll(x, 1, axis=2)


def sigma_network(x, label, coefficients=COEFFICIENTS):
    return -noise_network(x, label, coefficients) / expand(1 + label**2, x)


def level_network(x, label, coefficients=COEFFICIENTS):
    return -noise_network(x, label, coefficients)


def assert_row_close(actual, expected, relative):
    """Compares each leading index at `relative` times its own largest entry."""
    assert actual.dtype == np.float64
    largest = np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
    assert np.all(np.abs(actual - expected) <= relative * largest)


SCORE_FNS = {
    "vp_cont": parameterize.noise_prediction(VP, noise_network),
    "vp_disc": parameterize.discrete_noise_prediction(VP, noise_network, NUM_SCALES),
    "subvp_cont": parameterize.noise_prediction(SUBVP, noise_network),
    # The official code knows no discrete sub-VP and falls back to the continuous convention.
    "subvp_disc": parameterize.noise_prediction(SUBVP, noise_network),
    "ve_cont": parameterize.sigma_conditioned(VE, sigma_network),
    "ve_disc": parameterize.discrete_sigma_conditioned(VE, level_network, NUM_SCALES),
}


@pytest.mark.slow  # as tests/slow.py has it of single precision
@pytest.mark.parametrize("name", SCORE_FNS)
def test_scores_in_single_precision(golden, name):
    file = golden("a_scorefn_wrappers")
    score = SCORE_FNS[name](jnp.asarray(channels_last(file["in/x"])), jnp.asarray(file["in/t"]))
    error = np.abs(score - channels_last(file[f"out64/{name}"]))
    assert np.all(error <= file[f"tol/{name}"])


@pytest.mark.parametrize("name", SCORE_FNS)
def test_scores_in_double_precision(golden, x64, name):
    file = golden("a_scorefn_wrappers")
    x, t = (file[key].astype(np.float64) for key in ("in/x", "in/t"))
    score = SCORE_FNS[name](jnp.asarray(channels_last(x)), jnp.asarray(t))
    expected = channels_last(file[f"out64/{name}"])
    near_zero = (t < 2e-3) & ("vp" in name)
    assert_row_close(
        np.asarray(score), expected, np.where(near_zero, 1e-6, 1e-8)[:, None, None, None]
    )


def test_labels_on_the_sampling_grids(golden):
    file = golden("a_scorefn_wrappers")
    grid = lambda t_min: jnp.asarray(np.linspace(1, t_min, NUM_SCALES), jnp.float32)
    np.testing.assert_array_equal(
        table_index(grid(1e-3), NUM_SCALES), file["out/vp_grid_floor_index"]
    )
    labels = []
    network = lambda x, label: labels.append(label) or x
    score_fn = parameterize.discrete_sigma_conditioned(VE, network, NUM_SCALES)
    score_fn(jnp.zeros((NUM_SCALES, 1)), grid(1e-5))
    np.testing.assert_array_equal(labels[0], file["out/ve_grid_labels"])


def make_score_fn(name, coefficients):
    if name == "ve":
        return parameterize.sigma_conditioned(
            VE, functools.partial(sigma_network, coefficients=coefficients)
        )
    network = functools.partial(noise_network, coefficients=coefficients)
    return parameterize.noise_prediction({"vp": VP, "subvp": SUBVP}[name], network)


REDUCTIONS = {"mean": mean_except_batch, "sum": denoising.half_sum}
WEIGHTINGS = {"nolw": denoising.variance_weighting, "lw": denoising.likelihood_weighting}
LOSSES = [f"{s}_{r}_{w}" for s in ("vp", "subvp", "ve") for r in REDUCTIONS for w in WEIGHTINGS]
DISCRETE_LOSSES = [f"{chain}_{reduction}" for chain in ("ddpm", "smld") for reduction in REDUCTIONS]


def loss_of(name, file, coefficients):
    """The batch mean of the loss that an entry of c_losses names."""
    x, z = (jnp.asarray(channels_last(file[key])) for key in ("in/x", "in/z"))
    method, reduction, *weighting = name.split("_")
    reduction = REDUCTIONS[reduction]
    if weighting:
        t, sde = uniform_to_time(file["in/u"]), {"vp": VP, "subvp": SUBVP, "ve": VE}[method]
        score_fn, weighting = make_score_fn(method, coefficients), WEIGHTINGS[weighting[0]]
        loss = denoising.denoising_error(
            score_fn, sde, t, z, x, weighting=weighting, reduction=reduction
        )
    else:
        error, network, sde = {
            "ddpm": (denoising.ddpm_error, noise_network, VP),
            "smld": (denoising.smld_error, level_network, VE),
        }[method]
        network = functools.partial(network, coefficients=coefficients)
        labels = jnp.asarray(file["in/labels"], jnp.int32)
        loss = error(network, sde, labels, z, x, num_scales=NUM_SCALES, reduction=reduction)
    return jnp.mean(loss)


def uniform_to_time(u):
    return denoising.uniform_times(RNG, VP, len(u), draw=lambda rng, shape: jnp.asarray(u)).t


def test_times_from_uniform_numbers(golden):
    file = golden("c_losses")
    error = np.abs(uniform_to_time(file["in/u"]) - file["out64/t"])
    assert np.all(error <= file["tol/t"])


@pytest.mark.slow  # as tests/slow.py has it of single precision
@pytest.mark.parametrize("name", LOSSES + DISCRETE_LOSSES)
def test_losses_and_gradients_in_single_precision(golden, name):
    file = golden("c_losses")
    value_and_grad = jax.value_and_grad(lambda c: loss_of(name, file, c))
    loss, gradient = value_and_grad(jnp.asarray(COEFFICIENTS))
    assert np.abs(loss - file[f"out64/{name}"]) <= file[f"tol/{name}"]
    assert np.all(np.abs(gradient - file[f"out64/{name}_grad"]) <= file[f"tol/{name}_grad"])


@pytest.mark.parametrize("name", LOSSES + DISCRETE_LOSSES)
def test_losses_and_gradients_in_double_precision(golden, x64, name):
    file = {k: v.astype(np.float64) for k, v in golden("c_losses").items()}
    value_and_grad = jax.value_and_grad(lambda c: loss_of(name, file, c))
    loss, gradient = value_and_grad(jnp.asarray(COEFFICIENTS))
    expected = file[f"out64/{name}_grad"]
    np.testing.assert_allclose(loss, file[f"out64/{name}"], rtol=1e-8)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_losses_along_training(golden, x64):
    file = {k: v.astype(np.float64) for k, v in golden("c_train_steps").items()}
    before = np.concatenate([[[0.9, 0.5, -0.4, 0.2]], file["out64/coeffs"][:-1]])
    for step, coefficients in enumerate(before):
        x, z = (jnp.asarray(channels_last(file[key][step])) for key in ("in/x", "in/z"))
        score_fn, t = make_score_fn("vp", coefficients), uniform_to_time(file["in/u"][step])
        loss = jnp.mean(denoising.denoising_error(score_fn, VP, t, z, x))
        np.testing.assert_allclose(loss, file["out64/loss"][step], rtol=1e-8)


def likelihood_case(golden, name, dtype):
    file = golden(f"d_ode_likelihood_{name}")
    sde = {"vp": VP, "ve": VE}[name]
    arrays = {
        key: jnp.asarray(channels_last(file[f"in/{key}"]), dtype) for key in ("data", "epsilon")
    }
    return file, sde, make_score_fn(name, COEFFICIENTS), arrays


def bits_and_latents(sde, score_fn, x, epsilon, **solver):
    """Solves row by row, since every row has its own given probe."""

    @jax.jit  # Once for all rows: to trace a solve and to compile it takes seconds.
    def solve(x, probe):
        divergence = lambda rng, x: likelihood.along(probe)
        return likelihood.log_prob(RNG, sde, score_fn, x, divergence=divergence, **solver)

    rows = [solve(x[i : i + 1], epsilon[i : i + 1]) for i in range(len(x))]
    log_prob = jnp.concatenate([row.log_prob for row in rows])
    # The file scores VP on data in [-1, 1] and VE on data in [0, 1].
    data_range = (-1.0, 1.0) if sde.name == "vp" else (0.0, 1.0)
    bits = likelihood.bits_per_dim(log_prob, x[0].size, levels=256, data_range=data_range)
    return bits, np.moveaxis(np.concatenate([row.latent for row in rows]), -1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_likelihood_in_single_precision(golden, name):
    file, sde, score_fn, arrays = likelihood_case(golden, name, jnp.float32)
    bits, latents = bits_and_latents(sde, score_fn, arrays["data"], arrays["epsilon"])
    # Three tolerances: two solvers with other step sizes, each within one of the truth.
    assert np.all(np.abs(bits - file["out64/bpd_tight"]) <= 3 * file["tol/bpd_Rademacher"])
    # The latents of VE lie further off than that: allow the reference's own distance as well.
    truth = file["out64/latent_tight"]
    distance = np.abs(file["out64/latent_Rademacher"] - truth).max()
    assert np.all(np.abs(latents - truth) <= distance + 3 * file["tol/latent_Rademacher"])


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_likelihood_in_double_precision_with_a_tight_solver(golden, x64, name):
    file, sde, score_fn, arrays = likelihood_case(golden, name, jnp.float64)
    tight = {"rtol": 1e-10, "atol": 1e-10, "max_steps": 100_000}
    bits, latents = bits_and_latents(sde, score_fn, arrays["data"], arrays["epsilon"], **tight)
    np.testing.assert_allclose(bits, file["out64/bpd_tight"], rtol=1e-6)
    expected = file["out64/latent_tight"]
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_drift_divergence_and_prior_in_double_precision(golden, x64, name):
    file, sde, score_fn, arrays = likelihood_case(golden, name, jnp.float64)
    drift_fn = probability_flow(sde, score_fn)

    def at(x, t, probe):
        return likelihood.along(probe[None])(lambda x: drift_fn(x[None], t[None])[0], x)

    t = jnp.asarray(file["in/t"], jnp.float64)
    drift, divergence = jax.vmap(at)(arrays["data"], t, arrays["epsilon"])
    assert_row_close(np.asarray(drift), channels_last(file["out64/drift_at_t"]), 1e-8)
    np.testing.assert_allclose(divergence[:, 0], file["out64/hutchinson_at_t"], rtol=1e-8)
    prior = sde.prior_log_prob(jnp.asarray(file["out64/latent_Rademacher"]))
    np.testing.assert_allclose(prior, file["out64/prior_logp_z"], rtol=1e-8)
