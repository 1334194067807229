# SPDX-License-Identifier: Apache-2.0
"""EDM from a config: what its untrained model is, exactly; its settings; its published files."""

import dataclasses
import importlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.edm import cifar10
from configs.score_sde import digits
from scorejax import interop, runs
from scorejax.interop import published
from scorejax.interop.networks import edm as edm_weights
from scorejax.systems import edm, load_model
from tests import commands
from tests.commands import ROOT
from tests.published_files import edm_pickle


def get_config(name="digits", variant="debug"):
    return importlib.import_module(f"configs.edm.{name}").get_config(variant)


@pytest.mark.parametrize("variant", ["vp", "ve"])
def test_the_config_of_cifar10_has_the_official_settings(variant):
    # What `train.py --arch=ddpmpp` and `--arch=ncsnpp` of the published code set.
    config = cifar10.get_config(variant)
    official = edm_weights.settings_of({**config, "num_channels": 3}, {})
    expected = {
        "vp": ("positional", "standard", "standard", 1, (1, 1)),
        "ve": ("fourier", "residual", "standard", 2, (1, 3, 3, 1)),
    }[variant]
    names = ("embedding_type", "encoder_type", "decoder_type", "channel_mult_noise")
    assert tuple(official[name] for name in (*names, "resample_filter")) == expected
    assert (official["model_channels"], official["channel_mult"]) == (128, (2, 2, 2))
    assert (official["num_blocks"], official["attn_resolutions"]) == (4, (16,))
    assert config.num_train_steps * config.batch_size == pytest.approx(200_000_000, rel=1e-4)
    assert config.warmup * config.batch_size == pytest.approx(10_000_000, rel=1e-4)
    assert config.ema_rate ** (500_000 / config.batch_size) == pytest.approx(0.5, abs=1e-3)


class Zero(nn.Module):
    """A network that has learned nothing yet."""

    @nn.compact
    def __call__(self, x, label, *, dropout_rng=None):
        return 0 * x


@pytest.fixture
def untrained():
    """The digits' debug config, its model with that network, and its variables."""
    config = get_config()
    config.rtol = config.atol = 1e-5
    return config, dataclasses.replace(load_model(config), network=Zero()), ({}, {})


def test_an_untrained_model_is_the_gaussian_of_the_data_it_assumes(untrained):
    # c_skip x is the mean of x_0 given x if the data are N(0, sigma_data^2).
    config, model, variables = untrained
    t = jnp.linspace(0, 1, 5)
    x = jax.random.normal(jax.random.key(1), (5, *model.data.shape))
    variance = np.asarray(model.sde.sigma(t)) ** 2 + config.sigma_data**2
    expected = -np.asarray(x) / variance[:, None, None, None]
    # From the denoiser to the score float32 loses eps x / sigma^2, 0.015 at the lowest level, and
    # of sigma itself, by way of its time, 1e-6.
    lost = 1.2e-7 * np.abs(x) / np.asarray(model.sde.sigma(t))[:, None, None, None] ** 2
    difference = np.abs(model.score(variables)(x, t) - expected)
    assert np.all(difference <= 1e-5 * np.abs(expected) + lost)


@pytest.mark.deep
def test_its_likelihood_is_that_gaussians(untrained):
    config, model, variables = untrained
    x = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    rows = {"image": x, "rng": jax.random.split(jax.random.key(0), 4)}
    found = jax.jit(model.likelihood())(variables, rows)["bits_per_dim"]
    spread = np.hypot(config.sigma_data, config.sigma_min)
    nats = stats.norm.logpdf(x.astype(np.float64), scale=spread).mean(axis=(1, 2, 3))
    # Seventeen levels on [-1, 1]; the solver's tolerance of 1e-5, over 64 dimensions and the 8
    # octaves of sigma where the flow moves, leaves 1e-3 of a bit.
    np.testing.assert_allclose(found, (-nats + np.log(17 / 2)) / np.log(2), atol=1e-3)


@pytest.mark.deep
def test_samples_are_heuns_in_35_evaluations_unless_asked_otherwise(untrained):
    config, model, variables = untrained
    rngs = jax.random.split(jax.random.key(2), 400)
    drawn = jax.jit(model.sampler())(variables, rngs)
    assert np.all(drawn["nfe"] == 35)
    x = 2 * np.asarray(drawn["image"], np.float64) - 1
    # The slope of a Gaussian's flow is linear in x, so that Heun's steps multiply it by a number;
    # four standard errors of the std of 25,600 numbers.
    slope = lambda sigma: sigma / (sigma**2 + config.sigma_data**2)
    ends = config.sigma_max ** (1 / 7), config.sigma_min ** (1 / 7)
    grid = np.linspace(*ends, 18) ** 7
    h = np.diff(grid)
    steps = 1 + h / 2 * (slope(grid[:-1]) + slope(grid[1:]) * (1 + h * slope(grid[:-1])))
    expected = 80 * np.prod(steps) * (1 - grid[-1] * slope(grid[-1]))
    assert x.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * x.size))
    other = model.sampler("dpm++", nfe=11)(variables, rngs[:2])
    assert other["image"].shape == (2, 8, 8, 1) and np.all(other["nfe"] <= 11)


def test_the_loss_of_an_untrained_model_is_the_quadratures():
    # Mean over noise at level s: (s^2 x^2 / d^2 + d^2) / (s^2 + d^2) for a pixel x, d sigma_data;
    # over levels by Gauss and Hermite's rule, whose error at 40 nodes is below 1e-6.
    config = get_config()
    x = jnp.full((20_000, 8, 8, 1), 0.7)
    loss = load_model(config).example_loss(lambda y, label: 0 * y, jax.random.key(3), x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    square, d2 = np.exp(2 * (config.level_mean + config.level_std * nodes)), config.sigma_data**2
    expected = weights @ ((square * 0.49 / d2 + d2) / (square + d2)) / weights.sum()
    # Four standard errors: wrong once in 16,000 keys.
    assert abs(np.mean(loss) - expected) < 4 * np.std(loss) / np.sqrt(len(loss))


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_the_networks_of_the_sdes_keep_their_levels_and_weights(kind):
    # Of a network that knows nothing the noise is left: loss 1 at every level.
    config = get_config()
    config.preconditioner = kind
    x = jnp.zeros((500, 8, 8, 1))
    loss = load_model(config).example_loss(lambda y, label: 0 * y, jax.random.key(4), x)
    assert abs(np.mean(loss) - 1) < 4 * np.sqrt(2 / x.size)


SONG = {
    "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8],
    "embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard",
    "channel_mult_noise": 1, "resample_filter": [1, 1], "img_resolution": 16,
    "in_channels": 3, "out_channels": 3, "label_dim": 0, "augment_dim": 0,
}  # fmt: skip
FLAGS = {"nf": 16, "augment_dim": 0}
"""What differs from the debug config of CIFAR-10 in the network of the golden numbers."""


@pytest.fixture(scope="module")
def pickles(tmp_path_factory):
    """Files of the golden network as EDM publishes them: with each preconditioner, and labelled."""
    path = tmp_path_factory.mktemp("edm")
    with np.load(ROOT / "tests" / "goldens" / "i_net_ddpmpp.npz") as file:
        tensors = {name[7:]: file[name] for name in file if name.startswith("params/")}
    for name in ("EDMPrecond", "VPPrecond"):
        (path / f"{name}.pkl").write_bytes(edm_pickle(tensors, SONG, name))
    (path / "labelled.pkl").write_bytes(edm_pickle(tensors, SONG | {"label_dim": 5}))
    return path


@pytest.mark.slow  # test_import_weights.py makes runs of published files by default
def test_a_published_pickle_becomes_a_run(pickles, tmp_path):
    flags = [f"--config.{key}={value}" for key, value in FLAGS.items()]
    said = commands.run(
        "import_weights", "--architecture=edm/song_unet", f"--weights={pickles}/EDMPrecond.pkl",
        "--config=configs/edm/cifar10.py:debug", f"--workdir={tmp_path}", *flags,
    )  # fmt: skip
    assert said == f"step 0, averaged weights: {tmp_path}\n"
    module, variables = interop.load_checkpoint("edm/song_unet", pickles / "EDMPrecond.pkl")
    restored = runs.open(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, restored.variables[0], variables["params"])
    # And the run's score is that of the network in its preconditioner, written out.
    config = cifar10.get_config("debug")
    config.update(FLAGS)
    model, sigma = load_model(config), np.array([0.01, 0.5, 20.0], np.float32)
    x = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    wide = sigma[:, None, None, None].astype(np.float64)
    root = np.sqrt(wide**2 + 0.25)
    label = jnp.asarray(np.log(sigma) / 4)
    predicted = module.apply(variables, jnp.asarray(x / root, jnp.float32), label)
    denoised = 0.25 / root**2 * x + wide * 0.5 / root * np.asarray(predicted, np.float64)
    score = model.score((variables["params"], {}))(
        jnp.asarray(x), model.sde.time_of_sigma(jnp.asarray(sigma))
    )
    expected = (denoised - x) / wide**2
    # Of x of size 4 float32 keeps 5e-7, over sigma^2; and the network rounds.
    np.testing.assert_array_less(np.abs(score - expected), 1e-6 / wide**2 + 1e-3 * np.abs(expected))


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("VPPrecond", {}, "the file holds VPPrecond, SongUNet; the config needs EDMPrecond"),
        ("EDMPrecond", {"nf": 8}, "the file has model_channels=16; got 8"),
        ("EDMPrecond", {"fir_kernel": (1, 3, 3, 1)}, "the file has resample_filter="),
        ("labelled", {}, "edm/song_unet has label_dim=5; the config has 0"),
        ("EDMPrecond", {"preconditioner": "emd"}, "unknown preconditioner 'emd': did you mean"),
    ],
)  # fmt: skip
def test_a_file_of_another_network_is_one_line(pickles, name, changes, message):
    config = cifar10.get_config("debug")
    config.update({**FLAGS, **changes})
    found = interop.read_checkpoint(pickles / f"{name}.pkl")
    settings = {**config, "num_channels": 3}
    with pytest.raises(ValueError, match=re.escape(message)):
        published.variables_for(load_model(config).network, "edm/song_unet", found, settings)


def test_a_config_of_another_system_is_one_line(pickles):
    config = digits.get_config("debug")
    found = interop.read_checkpoint(pickles / "EDMPrecond.pkl")
    network = load_model(config).network
    settings = {**config, "num_channels": 1}
    with pytest.raises(ValueError, match="is of class SongUNet; the config's is NCSNpp"):
        published.variables_for(network, "edm/song_unet", found, settings)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("preconditioner", "emd", "unknown preconditioner 'emd': did you mean 'edm'"),
        ("sigma_data", 0.0, "sigma_data needs to be positive; got 0.0"),
        ("level_std", -1.2, "level_std needs to be positive; got -1.2"),
        ("centered", False, "centered needs to be True"),
        ("sigma_min", 80.0, "0 < sigma_min < sigma_max"),
        ("fir_kernel", (1, -1), "fir_kernel needs taps with a positive sum"),
        ("augment_dim", -1, "augment_dim needs to be at least 0"),
    ],
)
def test_an_impossible_value_is_one_line(key, value, message):
    config = get_config()
    config[key] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        edm.build(config)
