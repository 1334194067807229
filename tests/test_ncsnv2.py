# SPDX-License-Identifier: Apache-2.0
"""NCSNv2 as a system: its configs, its score and loss, and what it draws."""

import dataclasses
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import schedules, systems
from scorejax.score_model.control import measurement
from scorejax.systems import load_model

# Name: data, pixels, network, sigma_max, levels, steps per level, step size, updates.
OFFICIAL = {
    "cifar10": ("cifar10", 32, "ncsnv2", 50.0, 232, 5, 6.2e-6, 300_000),
    "celeba": ("celeba", 64, "ncsnv2", 90.0, 500, 5, 3.3e-6, 210_000),
    "church": ("lsun_church", 96, "ncsnv2_deeper", 140.0, 788, 4, 4.9e-6, 200_000),
    "bedroom": ("lsun_bedroom", 128, "ncsnv2_deeper", 190.0, 1086, 3, 1.8e-6, 150_000),
    "tower": ("lsun_tower", 128, "ncsnv2_deeper", 190.0, 1086, 3, 1.8e-6, 150_000),
    "ffhq": ("ffhq", 256, "ncsnv2_deepest", 348.0, 2311, 3, 9e-7, 80_000),
    "ncsn_cifar10": ("cifar10", 32, "ncsn", 1.0, 10, 100, 2e-5, 300_000),
}


def get_config(name, variant=""):
    return importlib.import_module(f"configs.ncsnv2.{name}").get_config(variant)


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_config_is_the_row_of_the_papers_table(name, golden):
    config = get_config(name)
    keys = ("dataset", "image_size", "model", "sigma_max", "num_scales", "steps_per_level")
    row = tuple(config[key] for key in (*keys, "step_size", "num_train_steps"))
    assert row == OFFICIAL[name]
    assert (config.nf, config.sigma_min, config.centered) == (128, 0.01, False)
    assert config.denoise == (config.ema_rate > 0) == (name != "ncsn_cifar10")
    chain = load_model(config).ladder.chain()
    official = golden("e_sigmas")
    sigmas = official[f"out64/{'ncsn_original' if name == 'ncsn_cifar10' else name}_sigmas"]
    np.testing.assert_allclose(chain["sigmas"], sigmas, rtol=1e-12)


def test_the_ladder_of_the_digits_is_what_the_rules_choose():
    # The rules run on the training half; the config rounds the largest distance up.
    config = get_config("digits")
    report = load_model(config).data_metrics()["ladder"]()(jax.random.key(0), None).scalars
    assert report["sigma_max"] <= config.sigma_max < 1.05 * report["sigma_max"]
    assert config.num_scales - report["num_scales"] in (0, 1)
    step_size = load_model(config).ladder.chain()["step_size"]
    assert step_size == pytest.approx(report["step_size"], rel=0.05)


class Linear(nn.Module):
    """A network that puts out c x, c its only parameter, and remembers nothing of its label."""

    @nn.compact
    def __call__(self, x, label, *, dropout_rng=None):
        return self.param("c", nn.initializers.constant(-2.0), ()) * x


def with_network(network, **changes):
    """The model of the digits' debug config with another network, after changes of the config."""
    config = get_config("digits", "debug")
    config.update(changes)
    return dataclasses.replace(load_model(config), network=network)


VARIABLES = {"c": jnp.asarray(-2.0)}, {}
"""Of the linear network."""


def test_the_score_is_the_output_over_sigma_at_every_level_and_between():
    model = with_network(Linear())
    sigmas = np.append(model.ladder.sigmas, 0.123)
    x = jnp.ones((len(sigmas), *model.data.shape))
    sigma = jnp.asarray(sigmas, jnp.float32)
    value = model.score(VARIABLES)(x, model.sde.time_of_sigma(sigma))
    # Sigma goes through the time of the SDE and back: rounding of an exponent of 6.
    np.testing.assert_allclose(value[:, 0, 0, 0], -2 / sigmas, rtol=5e-6)


def test_the_loss_is_that_of_a_random_level():
    # For output c x and data x: sigma score + z = c (x + sigma z) + z, so half its square sums to
    # (c^2 |x|^2 + d (c sigma + 1)^2) / 2 on average, over levels and z; 4 standard errors.
    model = with_network(Linear())
    sigmas = model.ladder.sigmas
    x = jnp.full((4000, 8, 8, 1), 0.5)
    loss = model.example_loss(lambda x, label: -2 * x, jax.random.key(0), x)
    expected = (4 * 16 + 64 * np.mean((1 - 2 * sigmas) ** 2)) / 2
    assert np.mean(loss) == pytest.approx(expected, abs=4 * float(np.std(loss)) / 4000**0.5)


@pytest.mark.parametrize(
    ("asked", "nfe"),
    [({}, 21), ({"num_steps": 3}, 31), ({"nfe": 35}, 31), ({"nfe": 11}, 11)],
)
def test_annealed_langevin_dynamics_makes_the_calls_that_it_reports(asked, nfe):
    calls = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x, label):
            jax.debug.callback(lambda _: calls.append(1), x.sum())
            return -x

    draw = with_network(Counting()).sampler("", **asked)
    drawn = jax.block_until_ready(jax.jit(draw)(({}, {}), jax.random.split(jax.random.key(0), 2)))
    jax.effects_barrier()
    assert len(calls) == nfe and (drawn["nfe"] == nfe).all()


def test_another_number_of_steps_takes_the_step_size_that_suits_it():
    ladder = load_model(get_config("cifar10")).ladder
    own, other = ladder.chain(), ladder.chain(10)
    assert own["step_size"] == 6.2e-6
    ratio = own["sigmas"][0] / own["sigmas"][1]
    assert other["step_size"] == schedules.langevin_step_size(ratio, 10) * 0.01**2


def test_inpainting_keeps_what_was_seen():
    model = with_network(Linear())
    shape = model.data.shape
    complete = model.completion(measurement("inpaint", shape))
    x = jax.random.uniform(jax.random.key(1), (3, *shape))
    rows = {"image": x, "rng": jax.random.split(jax.random.key(0), 3)}
    completed = jax.jit(complete)(VARIABLES, rows)
    np.testing.assert_array_equal(completed["image"][:, :4], x[:, :4])
    assert (completed["image"][:, 4:] != x[:, 4:]).all()


def test_completions_take_the_steps_of_the_ladder_alone():
    model = with_network(Linear())
    with pytest.raises(ValueError, match="num_steps=7 is for chains of score SDEs; the ladder"):
        model.completion(measurement("inpaint", model.data.shape), num_steps=7)


def test_the_held_out_loss_is_of_as_many_images_as_asked():
    losses = []
    for num_bits in (0, 40):
        model = with_network(Linear(), eval_examples=4, eval_bits_examples=num_bits)
        evaluation = model.metrics()["loss"]()(jax.random.key(0), VARIABLES)
        losses.append(evaluation.scalars["loss"])
    assert losses[0] == losses[1]


@pytest.mark.deep
def test_metrics_are_numbers_and_pictures():
    metrics = with_network(Linear(), eval_bits_examples=0).metrics()
    assert metrics.keys() == {"loss", "samples", "langevin", "interpolation"}
    pictures, scalars = {}, {}
    for build in metrics.values():
        evaluation = build()(jax.random.key(0), VARIABLES)
        pictures |= evaluation.pictures
        scalars |= evaluation.scalars
    assert pictures.keys() == {"samples", "denoising", "langevin", "interpolation"}
    assert all(np.isfinite(list(scalars.values())))


@pytest.mark.deep
def test_no_device_evaluates_more_examples_than_it_trains_on():
    sizes = set()

    class Watched(Linear):
        @nn.compact
        def __call__(self, x, label, *, dropout_rng=None):
            sizes.add(len(x))
            return self.param("c", nn.initializers.constant(-2.0), ()) * x

    found = []
    # On each of two devices: a quarter of a batch of 16 in two parts; at most half of one of 60,
    # which is half of the 50 examples and of the 20 samples.
    for batch_size, accumulation, on_device in ((16, 2, {4}), (60, 1, {25, 10})):
        changes = {"batch_size": batch_size, "accumulation": accumulation}
        counts = {"eval_examples": 50, "eval_samples": 20, "eval_bits_examples": 0}
        metrics = with_network(Watched(), **changes, **counts).metrics()
        sizes.clear()
        built = [metrics[name]() for name in ("loss", "samples")]
        found.append([metric(jax.random.key(0), VARIABLES) for metric in built])
        assert sizes == on_device
    for few, many in zip(*found, strict=True):
        # Rows are sums of 64 pixels in single precision, in an order that the compiler chooses.
        assert few.scalars == pytest.approx(many.scalars, rel=1e-5)
        for name, picture in few.pictures.items():
            np.testing.assert_allclose(picture, np.int16(many.pictures[name]), atol=1)


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_max": 0.001}, "0 < sigma_min < sigma_max; got sigma_min=0.01, sigma_max=0.001"),
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"sigma_max": NAN}, "sigma_max=nan"),
        ({"num_scales": 1}, "num_scales >= 2; got 1"),
        ({"steps_per_level": 0}, "steps_per_level needs to be at least 1; got 0"),
        ({"step_size": -1.0}, "step_size needs to be positive, or 0 for a rule; got -1.0"),
        ({"step_size": 1e-3}, "2 sigma_L.* = 0.0002, or it diverges; got 0.001"),
        ({"dataset": "digit"}, "unknown dataset 'digit': did you mean 'digits'"),
        ({"model": "ncsnv3"}, "unknown model 'ncsnv3': did you mean 'ncsnv2'"),
        ({"image_size": 7}, "multiple of 2; got 7 x 7"),
        ({"nf": 1}, "nf needs to be at least 2; got 1"),
        ({"adam_eps": 0.0}, "adam_eps needs to be a positive number; got 0.0"),
        ({"best_metric": "fid"}, "unknown best_metric 'fid'"),
        ({"snr": 0.0}, "snr needs to be a positive number; got 0.0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change, message):
    config = get_config("digits", "debug")
    config.update(change)
    with pytest.raises(ValueError, match=message) as error:
        systems.load(config)
    assert "\n" not in str(error.value)


def test_too_few_evaluations_for_the_levels_are_refused():
    config = get_config("digits", "debug")
    with pytest.raises(ValueError, match="'ald' needs nfe of at least 11; got 10"):
        load_model(config).sampler("ald", nfe=10)
    with pytest.raises(ValueError, match="unknown sampler 'adl': did you mean 'ald'"):
        load_model(config).sampler("adl")
