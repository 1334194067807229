# SPDX-License-Identifier: Apache-2.0
"""Finite-difference score matching as a system: its configs, and each model's loss and measure."""

import functools
import importlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import capabilities, systems
from scorejax.density import kernel_exponential_family as family
from scorejax.objectives.finite_difference import fd_denoising
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.score_model import ScoreModel
from scorejax.systems import fd_score_matching
from scorejax.systems.fd_score_matching import (
    autoencoder,
    deep_energy,
    flow,
    kernel,
    ncsn,
    training,
)
from scorejax.train.initial import make_init

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs/fd_score_matching").glob("*.py") if path.stem != "family"
)
ON_HAND = ("nice_digits", "energy_digits", "ncsn_digits", "vae_digits", "wae_digits",
           "kernel_wine", "kernel_breast_cancer")  # fmt: skip


def get_config(name, variant="debug"):
    return importlib.import_module(f"configs.fd_score_matching.{name}").get_config(variant)


IN_FULL = ("nice_fashion_mnist", "energy_fashion_mnist", "kernel_breast_cancer", "wae_digits")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in IN_FULL else [pytest.mark.slow]) for n in NAMES],
)
def test_the_network_of_a_config_can_be_in_full(name):
    config = get_config(name, "full")
    model = fd_score_matching.make_model(config)
    shape = model.data.shape if hasattr(model, "data") else (model.table.dim,)
    if isinstance(model, ScoreModel):
        init = make_init(model.network, jnp.ones((1, *shape)), jnp.ones(1))
        loss = make_loss_fn(model.example_loss, model.network.apply)
    else:
        init, loss = model.init, model.loss
    params, model_state = jax.eval_shape(init, jax.random.key(0))
    assert model_state == {} and len(jax.tree.leaves(params)) > 5
    state = type("State", (), {"model_state": {}})
    batch = {"image": jax.ShapeDtypeStruct((config.batch_size, *shape), "float32")}
    value, aux = jax.eval_shape(lambda p, b: loss(p, state, jax.random.key(0), b), params, batch)
    assert value.shape == () and all(v.shape == () for v in aux.metrics.values())
    jax.eval_shape(model.tx.init, params)


def test_full_size_parameters_are_counted():
    # Of the autoencoder of 64 pixels: 64 + 32 -> 128 -> 128 -> 8, 8 -> 128 -> 128 -> 64, and the
    # score of 8 + 64 -> 128 -> 128 -> 8, or of 8 alone for the WAE; see the networks' own tests.
    def perceptron(a, b):
        return (a + 1) * 128 + 129 * 128 + 129 * b

    for name, given in (("vae_digits", 64), ("wae_digits", 0)):
        init = autoencoder.make_model(get_config(name, "full")).init
        params, _ = jax.eval_shape(init, jax.random.key(0))
        expected = perceptron(96, 8) + perceptron(8, 64) + perceptron(8 + given, 8)
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_HAND)
def test_an_experiment_is_judged_by_numbers_and_pictures(name):
    system = systems.load(get_config(name))
    params, model_state = jax.jit(system.init)(jax.random.key(0))
    found = system.evaluate(jax.random.key(1), (params, model_state))
    failures = [value for key, value in found.scalars.items() if key.endswith("failures")]
    assert np.isfinite(list(found.scalars.values())).all() and not any(failures)
    assert found.pictures and all(p.dtype == np.uint8 for p in found.pictures.values())


# The flow.


def test_the_identity_flow_is_uniform_on_the_squeezed_images():
    # The logistic density of a logit is the volume that the logit makes, so that an image has the
    # density (1 - 2 squeeze)^d.
    model = flow.make_model(get_config("nice_digits"))
    params = jax.tree.map(jnp.zeros_like, jax.eval_shape(model.init, jax.random.key(0))[0])
    x = jnp.asarray(np.random.default_rng(0).random((3, 8, 8, 1)), jnp.float32)
    rows = jax.jit(model.likelihood())((params, {}), {"image": x})
    expected = math.log2(17) - math.log2(1 - 2 * model.squeeze)
    np.testing.assert_allclose(rows["bits_per_dim"], expected, rtol=1e-6)
    np.testing.assert_allclose(flow.unlogit(flow.logit(x, 0.05), 0.05), x, atol=1e-6)
    drawn = jax.jit(model.sampler())((params, {}), jax.random.split(jax.random.key(0), 64))
    # Uniform on an interval of length 1 / 0.9: its variance from 4096 draws, to five errors.
    np.testing.assert_allclose(drawn["image"].var(), 1 / 0.9**2 / 12, rtol=5 * 0.9 / 64)


def test_the_loss_of_the_flow_is_the_objective_of_its_logits():
    config = get_config("nice_digits")
    config.objective, config.batch_size = "mle", 2
    model = flow.make_model(config)
    params, _ = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 1)), jnp.float32)
    losses = jax.jit(model.losses)(params, jax.random.key(0), x)
    measured = jax.jit(model.likelihood())((params, {}), {"image": x})
    np.testing.assert_allclose(losses, -measured["log_prob"], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["nice_digits", pytest.param("energy_digits", marks=pytest.mark.slow)]
)
def test_losses_of_rows_do_not_depend_on_how_the_batch_is_divided(name):
    config = get_config(name)
    config.objective = "ssm"
    model = fd_score_matching.make_model(config)
    params, _ = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)
    keys, losses = jax.random.split(jax.random.key(1), 4), jax.jit(model.losses)
    whole = losses(params, keys, x)
    # Each pair once first and once last, so that there is one size to compile.
    order = np.array([2, 3, 0, 1])
    np.testing.assert_allclose(losses(params, keys[order], x[order]), whole[order], rtol=1e-5)
    other = x.at[2:].set(0.5)
    np.testing.assert_allclose(losses(params, keys, other)[:2], whole[:2], rtol=1e-5)


# The deep energy model.


def test_many_levels_at_one_are_that_level_weighted():
    energy = lambda x: jnp.sum(jnp.log(jnp.cosh(x)), axis=(1, 2, 3))
    x, rng = jnp.ones((4, 2, 2, 1)), jax.random.key(0)
    options = {"eps": 0.05, "num_directions": 1}
    at_one = {"sigma_min": 0.3, "sigma_max": 0.3, "target_sigma": 0.3}
    many = lambda x: training.multi_scale_fd_denoising(energy, rng, x, **at_one, **options)
    one = lambda x: fd_denoising(energy, jax.random.split(rng)[1], x, sigma=0.3, **options)
    found, single = jax.jit(lambda x: (many(x), one(x)))(x)
    np.testing.assert_allclose(found, 0.3**2 * single, rtol=1e-5)


@pytest.mark.deep
def test_training_at_many_levels_learns_the_known_energy_of_gaussian_data(x64):
    # Data N(0, a) in one dimension, levels uniform on [0.3, 1.2]. A level's noisy data are
    # phi = N(0, a + sigma^2), the posterior mean of x - y is -y sigma^2 / (a + sigma^2), and levels
    # are weighed by w = 1 / sigma^2, so that E' is y times the mean over levels of
    # w phi sigma^2 / (a + sigma^2), over the mean of w phi target^2.
    # The loss is quadratic in the coefficients of E: one Newton step fits them. Of a million rows
    # targets of relative spread 3 leave 0.5 %; 1 % is two of those. Six even powers do to 1e-4.
    a, low, high, target, num = 1.0, 0.3, 1.2, 0.1, 2**20
    powers = np.arange(2, 14, 2)
    levels = np.linspace(low, high, 1001)[:, None]
    y = np.linspace(-3, 3, 61)
    phi = np.exp(-(y**2) / (2 * (a + levels**2))) / np.sqrt(a + levels**2)
    expected = y * (phi / (a + levels**2)).mean(0) / (target**2 * (phi / levels**2).mean(0))

    @jax.jit
    def fit(x):
        def loss(c):
            energy = lambda x: (x ** powers[None]) @ c
            rng, options = jax.random.key(0), {"eps": 1e-3, "num_directions": 1}
            levels = {"sigma_min": low, "sigma_max": high, "target_sigma": target}
            rows = training.multi_scale_fd_denoising(energy, rng, x, **levels, **options)
            return rows.mean()

        zero = jnp.zeros(len(powers))
        return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))

    x = math.sqrt(a) * np.random.default_rng(0).normal(size=(num, 1))
    found = (powers * y[:, None] ** (powers - 1)) @ np.asarray(fit(x))
    density = (phi / levels**2).mean(0)
    error = np.sum(density * (found - expected) ** 2) / np.sum(density * expected**2)
    assert math.sqrt(error) < 0.01


def test_images_are_framed_and_samples_are_not():
    config = get_config("energy_digits")
    config.padding = 2
    model = deep_energy.make_model(config)
    assert model.padded_shape == (12, 12, 1)
    x = jnp.ones((1, 8, 8, 1))
    assert deep_energy.framed(x, 2).shape == (1, 12, 12, 1) and deep_energy.framed(x, 2).sum() == 64
    draw = model.sampler("langevin")
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.eval_shape(draw, (shapes, {}), jax.random.split(jax.random.key(0), 3))
    assert drawn["image"].shape == (3, 8, 8, 1)


# The kernel family.


@pytest.mark.deep
def test_the_loss_of_the_family_is_of_the_half_that_its_weights_have_not_seen():
    config = get_config("kernel_wine")
    config.objective, config.log_widths = "sm", (0.5,)  # the same whatever the key
    model = kernel.make_model(config)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    rows = jnp.asarray(model.table.train[:16])
    terms = functools.partial(model.terms, params)
    exact = jax.jit(lambda half: family.exact(terms, half))
    found = [exact(half) for half in (rows[:8], rows[8:])]
    alpha = family.inner_weights(found[0], math.exp(config.log_ridge))
    expected = family.loss(found[1], alpha).mean()
    state = type("State", (), {"model_state": {}})
    loss = jax.jit(lambda p, b: model.loss(p, state, jax.random.key(0), b)[0])
    # Solved in single precision, with a ridge of 0.14 against a Gram matrix of size 1.
    np.testing.assert_allclose(loss(params, {"image": rows}), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "objective",
    ["fd_ssm", "fd_dsm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ssm", "dsm"))],
)
def test_directions_of_the_family_average_to_its_exact_functionals(objective):
    # Repeated 400 times: what is left of the mean's spread is within five of its errors, in each
    # entry of "second"; the FD forms are biased by O(eps^2) = 1e-4 of the terms, which is less.
    config = get_config("kernel_wine")
    config.objective, config.eps, config.num_directions = objective, 0.01, 400
    config.sigma = 0.5
    terms = lambda x: jnp.stack([jnp.sin(x).sum(1), -jnp.sum(x**2, axis=1)], axis=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    functionals = kernel.make_model(config).functionals
    found = jax.jit(lambda x: functionals(terms, jax.random.key(0), x))(x)
    losses = np.asarray(family.loss(found, jnp.ones(1))).reshape(400, 2)
    if objective.endswith("dsm"):
        many = jnp.repeat(x, 4000, axis=0)
        noise = jax.random.normal(jax.random.key(1), many.shape)
        denoise = jax.jit(lambda x: family.denoising(terms, x, noise, sigma=0.5))
        exact = family.loss(denoise(many), jnp.ones(1))
        exact = np.asarray(exact).reshape(2, -1).mean(axis=1)
    else:
        exact = np.asarray(family.loss(jax.jit(lambda x: family.exact(terms, x))(x), jnp.ones(1)))
    error = losses.std(axis=0) / 20
    assert (np.abs(losses.mean(axis=0) - exact) < 5 * error + 0.01).all()


# NCSN.


@pytest.mark.parametrize("model", ["ncsn", "ncsnv2"])
def test_the_loss_of_a_linear_score_is_its_closed_form(model):
    # s = c y (over sigma for v2) is linear, so that FD-SSM-VR is SSM-VR at any eps: its divergence
    # is d c, along any direction, and its square is of y = x + sigma noise. At one level, sigma^2
    # (d c + c^2 (|x|^2 + sigma^2 d) / 2) on average over the noise, with five standard errors.
    config = get_config("ncsn_digits")
    config.model, config.num_scales, config.eps = model, 2, 0.5
    config.sigma_min, config.sigma_max = 0.4999, 0.5
    c, d, sigma, n = -1.5, 4, 0.5, 4000
    example_loss = ncsn.make_model(config).example_loss
    linear, x = lambda x, label: c * x, jnp.ones((n, 2, 2, 1))
    losses = jax.jit(lambda x: example_loss(linear, jax.random.key(0), x))(x)
    losses = np.asarray(losses)
    c = c if model == "ncsn" else c / sigma
    expected = sigma**2 * (d * c + c**2 * d * (1 + sigma**2) / 2)
    assert abs(losses.mean() - expected) < 5 * losses.std() / math.sqrt(n) + 1e-3 * abs(expected)


# The autoencoders.


@pytest.mark.parametrize("name", ["vae_digits", pytest.param("wae_digits", marks=pytest.mark.slow)])
def test_each_player_learns_from_its_own_part(name):
    config = get_config(name)
    model = autoencoder.make_model(config)
    params, _ = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)

    @jax.jit
    def gradient(params, weights):
        whole = lambda p: sum(
            weights[name] * rows.mean()
            for name, rows in model.losses(p, jax.random.key(1), x).items()
        )
        return jax.grad(whole)(params)

    off = dict.fromkeys(("reconstruction", "prior", "negative_entropy", "score"), 0.0)
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    moved = {
        name: {
            player: size(tree) > 0 for player, tree in gradient(params, off | {name: 1.0}).items()
        }
        for name in off
    }
    assert moved == {
        "reconstruction": {"encoder": True, "decoder": True, "critic": False},
        "prior": {"encoder": True, "decoder": False, "critic": False},
        "negative_entropy": {"encoder": True, "decoder": False, "critic": False},
        "score": {"encoder": False, "decoder": False, "critic": True},
    }


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("nice_digits", {"model": "nicer"}, "unknown model 'nicer': did you mean 'nice'"),
        ("nice_digits", {"objective": "fdssm"}, "unknown objective 'fdssm': did you mean 'fd_ssm'"),
        ("nice_digits", {"eps": 0.0}, "eps needs to be a positive number; got 0.0"),
        ("nice_digits", {"eps": 1e-9}, "eps needs more than .* the rounding of 64 coordinates"),
        ("energy_digits", {"eps": -0.1}, "eps needs to be a positive number; got -0.1"),
        ("kernel_wine", {"eps": 1e-9}, "eps needs more than .* the rounding of 13 coordinates"),
        ("ncsn_digits", {"eps": 1e-9}, "eps needs more than .* the rounding of 64 coordinates"),
        ("vae_digits", {"eps": 0.0}, "eps needs to be a positive number; got 0.0"),
        ("nice_digits", {"direction": "cube"}, "unknown direction 'cube'"),
        ("nice_digits", {"squeeze": 0.5}, "squeeze needs to lie between 0 and 0.5; got 0.5"),
        ("nice_digits", {"centered": True}, "a flow of logits needs centered=False"),
        ("nice_digits", {"best_metric": "fid"}, "unknown best_metric 'fid'"),
        ("energy_digits", {"objective": "mle"}, "unknown objective 'mle'"),
        ("energy_digits", {"activation": "relu"}, "unknown activation 'relu'"),
        ("energy_digits", {"multipliers": (1, 2, 2, 2)}, "multiple of 16; got 8 x 8"),
        ("energy_digits", {"target_sigma": 0.0}, "target_sigma needs to be a positive number"),
        ("kernel_wine", {"table": "wines"}, "unknown table 'wines'"),
        (
            "kernel_wine",
            {"eval_temperatures": 1},
            "eval_temperatures needs to be at least 2",
        ),
        ("kernel_wine", {"batch_size": 15}, "batch_size needs to be even"),
        ("kernel_wine", {"objective": "mle"}, "unknown objective 'mle'"),
        ("ncsn_digits", {"step_size": 1.0}, "step_size"),
        ("ncsn_digits", {"objective": "sm"}, "unknown objective 'sm'"),
        ("vae_digits", {"latent": 0}, "latent needs to be at least 1; got 0"),
        ("wae_digits", {"prior_weight": -1.0}, "prior_weight needs to be a positive number"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, change, message):
    config = get_config(name)
    config.update(change)
    with pytest.raises(ValueError, match=message):
        systems.load(config)


def test_what_a_model_has_not_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"'kernel_exponential_family', cannot draw samples; .*edm"
    ):
        systems.require(get_config("kernel_wine"), capabilities.DrawsSamples)
    with pytest.raises(ValueError, match=r"'implicit_vae', cannot measure likelihoods; .*edm"):
        systems.require(get_config("vae_digits"), capabilities.MeasuresDensity)


@pytest.mark.parametrize(
    "name, sampler",
    [("nice_digits", "inverse"), ("energy_digits", "langevin"), ("vae_digits", "decoder")],
)
def test_samples_that_no_classifier_can_guide_say_so(name, sampler):
    model = fd_score_matching.make_model(get_config(name))
    with pytest.raises(ValueError, match=f"samples by '{sampler}' cannot be guided by a classif"):
        model.sampler("", condition=lambda score: score)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["nice_digits", "energy_digits", "vae_digits"])
def test_a_sample_is_a_function_of_its_own_key(name):
    model = fd_score_matching.make_model(get_config(name))
    params, _ = model.init(jax.random.key(0))
    draw, keys = jax.jit(model.sampler()), jax.random.split(jax.random.key(1), 4)
    images, order = draw((params, {}), keys)["image"], np.array([2, 0, 0, 1])
    again = draw((params, {}), keys[order])["image"]
    np.testing.assert_allclose(again, images[order], rtol=1e-5, atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 0.01
