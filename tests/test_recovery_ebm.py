# SPDX-License-Identifier: Apache-2.0
"""The system of recovery likelihood: its samplers, its density, its divergence, its mistakes."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.recovery_ebm import digits, rings
from scorejax import capabilities, runs, systems
from scorejax.data.vectors import VectorView
from scorejax.density.bidirectional import sandwich
from scorejax.density.diffusion_importance import diffusion_normalizer
from scorejax.energies import product_of_experts
from scorejax.evaluate.density_report import Unit, energy_report
from scorejax.models.spectral_norm import power_iteration
from scorejax.objectives.recovery import noised_data, recovery_denoising
from scorejax.samplers import recovery as samplers
from scorejax.schedules import fine_recovery_levels, recovery_levels
from scorejax.systems.recovery_ebm import density, training
from scorejax.systems.recovery_ebm.density import relaxation
from scorejax.train.loop import train
from scorejax.train.state import TrainState
from tests.test_recovery import Data, sampled_law

DIM = 4
DATA = Data(mean=0.3, variance=0.25)


class ExactEnergy(nn.Module):
    """F of independent coordinates N(mean, variance): minus s_t^2 times the true energy."""

    @nn.compact
    def __call__(self, y, t):
        step_sizes = jnp.asarray(DATA.levels.step_sizes, y.dtype)[t]
        return -step_sizes * DATA.energy_fn()(y, t)


@pytest.fixture(scope="module")
def model():
    """The system's model of points of the plane, with exact energies of Gaussian data."""
    rng = np.random.default_rng(0)
    rows = DATA.mean + math.sqrt(DATA.variance) * rng.normal(size=(600, DIM))
    view = VectorView(rows[:300], rows[300:])
    config = rings.get_config("recovery,debug")
    return dataclasses.replace(
        systems.load_model(config),
        levels=DATA.levels,
        data=view,
        network=ExactEnergy(),
        num_chain_steps=50,
        truth=None,
    )


VARIABLES = ({}, {})


def test_samples_have_the_law_of_their_chains(model):
    draw = dataclasses.replace(model, noise_scale=1.0).sampler()
    drawn = jax.jit(draw)(VARIABLES, jax.random.split(jax.random.key(0), 2000))
    assert (drawn["nfe"] == 6 * 50).all()
    mean, variance = sampled_law(DATA, 50)
    x = np.asarray(drawn["x"], np.float64)
    # 4 standard errors of 8000 coordinates: false alarms are 1 in 8,000.
    assert abs(x.mean() - mean) < 4 * math.sqrt(variance / x.size)
    assert abs(x.var() / variance - 1) < 4 * math.sqrt(2 / x.size)


@pytest.mark.deep
def test_likelihoods_and_bounds_hold_the_density_of_noisy_data(model):
    normalize = model.normalizer(num_walks=200, num_temperatures=300, num_chain_steps=200)
    bounds = normalize(VARIABLES, jax.random.key(1))
    s, tau2 = DATA.levels.energy_scales[0], DATA.tau2[0]
    # x_0 = y_0 / s with y_0 Gaussian: exp(-E(s x)) s^D integrates to (2 pi tau2)^(D / 2).
    truth = DIM / 2 * math.log(2 * math.pi * tau2)
    assert bounds.met, bounds
    assert bounds.lower - 3 * bounds.lower_error < truth < bounds.upper + 3 * bounds.upper_error

    rows = {"x": jnp.asarray(model.data.test), "rng": jax.random.split(jax.random.key(2), 300)}
    measured = model.likelihood()(VARIABLES, rows)["log_prob"] - truth
    variance = DATA.levels.scales[0] ** 2 * DATA.variance + DATA.levels.stds[0] ** 2
    entropy = DIM / 2 * math.log(2 * math.pi * math.e * variance)
    # The mean log-density of 300 rows is minus the entropy, to 4 standard errors of sqrt(D / 2).
    assert abs(measured.mean() + entropy) < 4 * math.sqrt(DIM / 2 / 300)
    np.testing.assert_allclose(s**2 * variance, tau2)


FINE = fine_recovery_levels(600, energy_unit="nats")


class NoisierEnergy(nn.Module):
    """The exact log-densities of x_{t+1}, which denoising teaches, of the same data."""

    @nn.compact
    def __call__(self, x, t):
        scale, std = (jnp.asarray(table[1:], x.dtype)[t] for table in (FINE.scales, FINE.stds))
        variance = scale**2 * DATA.variance + std**2
        return -((x - (scale * DATA.mean)[:, None]) ** 2).sum(axis=1) / (2 * variance)


@pytest.mark.deep
def test_energies_learned_by_denoising_are_those_of_the_noisier_level(model):
    model = dataclasses.replace(
        model, objective="denoising", levels=FINE, network=NoisierEnergy(), num_chain_steps=0
    )
    x = jnp.asarray(model.data.train)

    def losses(factor):
        energy_fn = lambda x, t: factor * model.energy(VARIABLES)(x, t)
        t = jnp.arange(len(x)) % 3  # the lowest levels, where x_t and x_{t+1} differ most
        return recovery_denoising(energy_fn, jax.random.key(3), x, FINE, t)

    # The objective is stationary at these energies: 4 standard errors of 300 rows.
    slopes = jax.jvp(losses, (1.0,), (1.0,))[1]
    assert abs(slopes.mean()) < 4 * slopes.std() / math.sqrt(300)

    variance = FINE.scales[1] ** 2 * DATA.variance + FINE.stds[1] ** 2
    truth = DIM / 2 * math.log(2 * math.pi * variance)
    numbers = {"num_walks": 100, "num_temperatures": 600, "num_chain_steps": 200}
    bounds = model.normalizer(**numbers)(VARIABLES, jax.random.key(1))
    assert bounds.met, bounds
    assert bounds.lower - 3 * bounds.lower_error < truth < bounds.upper + 3 * bounds.upper_error
    ladder = density.noise_ladder(
        model, VARIABLES, 600
    )  # Walks of the model, of the same energies.
    noisy = noised_data(jax.random.key(4), x, FINE, 1)
    log_prob = density.data_log_prob(model, VARIABLES)
    bounds = jax.jit(lambda rng: diffusion_normalizer(rng, ladder, log_prob, noisy, noisy))(
        jax.random.key(5)
    )
    assert bounds.met, bounds
    # The starts are draws of the density, whose mean and variance 300 rows have to 1 in 17.
    assert abs(bounds.lower - truth) < 3 * bounds.lower_error and abs(bounds.upper - truth) < 0.2
    rows = {"x": jnp.asarray(model.data.test), "rng": jax.random.split(jax.random.key(2), 300)}
    measured = model.likelihood()(VARIABLES, rows)["log_prob"] - truth
    assert abs(measured.mean() + truth + DIM / 2) < 4 * math.sqrt(DIM / 2 / 300)
    assert f"noise of std {FINE.stds[1]:.3g}," in model.caveats()[0]

    draw = dataclasses.replace(model, noise_scale=1.0).sampler(nfe=600)
    drawn = jax.jit(draw)(VARIABLES, jax.random.split(jax.random.key(0), 2000))
    assert (drawn["nfe"] == 600).all()
    x = np.asarray(drawn["x"], np.float64)
    spread = FINE.scales[0] ** 2 * DATA.variance + FINE.stds[0] ** 2
    # The 600 steps' own error is a few 1 / 600 of the variance, below the standard error.
    assert abs(x.var() / spread - 1) < 4 * math.sqrt(2 / x.size) + 3 / 600
    with pytest.raises(ValueError, match="draws once a level"):
        model.sampler(num_steps=30)


def test_bits_per_dim_are_reported_for_both_bounds():
    unit = Unit("bits_per_dim", -1 / (DIM * math.log(2)), "num_images")
    bounds = sandwich(jnp.asarray([1.0, 1.5, 1.2]), jnp.asarray([-1.6, -1.3]))
    report = energy_report(np.full((1, 5), 2.0), bounds, unit=unit)
    for name, log_z in {"high": bounds.upper, "low": bounds.lower}.items():
        expected = 2.0 + float(log_z) / (DIM * math.log(2))
        np.testing.assert_allclose(report[f"bits_per_dim_{name}"], expected, rtol=1e-6)
    # Three walks do not make the bounds meet, and then there is no one number to quote.
    assert not report["bounds_meet"] and "bits_per_dim" not in report

    upside_down = sandwich(jnp.asarray([1.0, 1.1, 1.2]), jnp.asarray([9.0, 9.1]))
    report = energy_report(np.full((1, 5), 2.0), upside_down, unit=unit)
    assert "bits_per_dim_low" in report and "bits_per_dim_high" not in report


def test_relaxation_says_that_short_chains_leave_no_densities():
    assert relaxation(recovery_levels(6), 30) < 0.01
    # At level 0 a step goes s^2 / (2 sigma^2) = b^2 / 2 of the way.
    np.testing.assert_allclose(relaxation(recovery_levels(6), 10_000), 1.0)
    config = digits.get_config("debug")
    assert any("no log-densities" in sentence for sentence in systems.load_model(config).caveats())


@pytest.mark.deep
def test_long_chains_keep_exact_energies_and_report_it(model):
    chains = dataclasses.replace(model, long_chains=type(model.long_chains)(300, 64))
    evaluation = chains.metrics()["long_chains"]()(jax.random.key(0), VARIABLES)
    # E is chi-square with D degrees of freedom, / 2: mean 1/2 a dimension; 64 chains at the last
    # record have the standard error sqrt(D / 2 / 64) / D = 0.044.
    constant = math.log(DATA.levels.energy_scales[0])
    assert abs(evaluation.scalars["energy_last_mala"] + constant - 0.5) < 4 * 0.045
    assert 0.4 < evaluation.scalars["acceptance_mala"] < 0.8
    assert evaluation.pictures["long_chains_energy"].dtype == np.uint8


def test_a_product_of_gaussian_experts_is_their_product():
    # Precisions add. The chain at the lowest level alone: its stationary law is the product.
    first, second = (lambda x, t, p=p: p / 2 * (x**2).sum(axis=1) for p in (3.0, 5.0))
    energy_fn = product_of_experts(first, second)
    x, t = jnp.linspace(-1, 1, 12).reshape(6, 2), jnp.zeros(6, jnp.int32)
    np.testing.assert_allclose(energy_fn(x, t), 4.0 * (x**2).sum(axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match="at least one energy"):
        product_of_experts()
    levels, num = recovery_levels(2, step_scale=0.002), 4000
    draw = lambda key: samplers.sample(key, energy_fn, (num, 2), levels, num_steps=200).x
    # Level 0 given level 1 adds 1 / sigma^2 to neither: its marginal comes from the top, whose
    # chains of 200 steps forget their start. Both levels have this energy, of y and not of x.
    drawn = np.asarray(jax.jit(draw)(jax.random.key(0)), np.float64)
    lam = 8.0 + levels.recovery_precisions
    rho = 1 - levels.step_sizes * lam / 2
    variance = 1.0
    for t in (1, 0):
        pull = (1 - rho[t] ** 200) * levels.recovery_precisions[t] / lam[t] + rho[t] ** 200
        noise = levels.step_sizes[t] * (1 - rho[t] ** 400) / (1 - rho[t] ** 2)
        variance = (pull**2 * variance + noise) / levels.energy_scales[t] ** 2
    assert abs(drawn.var() / variance - 1) < 4 * math.sqrt(2 / drawn.size)


@pytest.mark.deep
def test_published_singular_vectors_are_those_of_the_averages():
    config = rings.get_config("recovery,debug")
    system = systems.load(config)
    params, model_state = jax.jit(system.init)(jax.random.key(0))
    state = TrainState.create(params, model_state, system.tx)
    averages = jax.tree.map(lambda a: a + 0.3 * jnp.ones_like(a) / a.size, params)
    published, found = system.published(state.replace(ema_params=averages))
    assert published is averages
    kernel, u = averages["hidden_0"]["kernel"], found["spectral"]["hidden_0"]["u"]
    sigma = power_iteration(kernel, u)[0]
    # Ten iterations from another kernel's vector: within 1 % of the largest singular value.
    np.testing.assert_allclose(sigma, np.linalg.svd(kernel, compute_uv=False)[0], rtol=0.01)


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(tmp_path):
    config = rings.get_config("recovery,debug")
    config.spectral_norm, config.num_train_steps, config.eval_every = False, 400, 0
    config.best_metric, config.save_every, config.warmup = "", 10, 400
    config.learning_rate, config.num_chain_steps = 1.0, 10
    config.energy_band = 1e-2  # Before rates are so high that all units may saturate.
    with pytest.raises(RuntimeError, match="diverged at step") as caught:
        train(systems.load(config), config, tmp_path)
    message = str(caught.value)
    assert training.DIVERGENCE in message and "is kept" in message and "\n" not in message
    run = runs.open(tmp_path)
    step = int(message.split("diverged at step ")[1].split(":")[0])
    assert 0 < run.step < step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))


def test_samplers_and_their_mistakes():
    model = systems.load_model(digits.get_config("debug"))
    for capability in (
        capabilities.DrawsSamples, capabilities.MeasuresDensity, capabilities.Normalizes,
        capabilities.Completes, capabilities.InterpolatesNoise, capabilities.IsEvaluated,
        capabilities.TakesWeights,
    ):  # fmt: skip
        assert isinstance(model, capability)
    assert model.chain_options(nfe=20)["num_steps"] == 3
    for options, words in [
        ({"name": "langevn"}, "unknown sampler 'langevn': did you mean 'langevin'"),
        ({"nfe": 5}, "nfe needs at least 6"),
        ({"nfe": 60, "num_steps": 3}, "not both"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.sampler(**options)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("num_chain_steps", 0, "num_steps=0, one normal draw a level, needs levels"),
        ("ladder", "fine", r"\(ladder 'fine'\) needs 21 levels or more"),
        ("objective", "denoising", "needs ladder='fine'; got 'blocks'"),
        ("num_chain_steps", -1, "num_steps needs to be at least 0; got -1"),
        ("num_levels", 1, "recovery_levels needs 2 to 501 levels"),
        ("num_levels", 1000, "takes every step"),
        ("ladder", "finest", "unknown ladder 'finest': did you mean 'fine'"),
        ("objective", "recover", "unknown objective 'recover': did you mean 'recovery'"),
        ("step_scale", 0.1, "step_scale needs to be below 0.0445"),
        ("noise_scale", 0.0, r"noise_scale needs to lie in \(0, 1\]; got 0.0"),
        ("energy_band", -1.0, "energy_band needs to be positive, or 0"),
        ("background", 1.0, r"background needs to be in \[0, 1\); got 1.0"),
        ("image_size", 7, "multiple of 2; got 7 x 7"),
        ("model", "mlp", "need model='resnet'; got 'mlp'"),
        ("activation", "relux", "unknown activation 'relux'"),
        ("dtype", "float16", "unknown dtype 'float16': did you mean 'bfloat16'"),
        ("dataset", "digit", "unknown dataset 'digit': did you mean 'digits'"),
        ("optimizer", "kerasadam", "unknown optimizer 'kerasadam': did you mean 'keras_adam'"),
        ("eval_chains", 2, "eval_chains needs to be at least 3"),
    ],
)
def test_bad_config_is_one_line(key, value, words):
    config = digits.get_config("debug")
    if key == "model":
        config.hidden, config.num_hidden, config.input_scale = 8, 1, 1.0
        config.num_frequencies, config.frequency = 0, 1.0
    config[key] = value
    with pytest.raises(ValueError, match=words) as caught:
        systems.load(config)
    assert "\n" not in str(caught.value)


def test_a_ladder_that_contradicts_the_run_is_one_line(tmp_path):
    config = rings.get_config("recovery,debug")
    config.num_train_steps, config.eval_every, config.best_metric = 10, 0, ""
    config.save_every = 10
    train(systems.load(config), config, tmp_path)
    config.num_levels, config.num_train_steps = 5, 20
    with pytest.raises(ValueError, match="num_levels") as caught:
        train(systems.load(config), config, tmp_path)
    assert "\n" not in str(caught.value)
