# SPDX-License-Identifier: Apache-2.0
"""The classifier of noisy images: its size by the recipe, its units, what it does for any SDE."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorejax import systems
from scorejax.models.wide_resnet import WideBlock, WideResNet, standardised
from scorejax.sdes import VESDE, VPSDE
from scorejax.systems import noisy_classifier
from scorejax.train.state import averaged
from tests.random_variables import random_variables

TINY = WideResNet(num_classes=3, width=4, widen_factor=2, num_blocks=1, num_stages=2)


def some_variables(network, size=8):
    image = jnp.ones((1, size, size, 1))
    return random_variables(network, image, jnp.ones(1), seed=0, mean=0.1, std=0.3)


def test_wrn_28_10_has_its_number_of_parameters():
    # By the recipe: 3x3 convolutions without bias, a dense layer of the label in each block, two
    # normalisations, no parameters in shortcuts; 128 frequencies and two dense layers of 512.
    size = 9 * 3 * 16 + 128 + (257 + 513) * 512
    c = 16
    for features in (160, 320, 640):
        for _ in range(4):
            size += 2 * c + 9 * c * features + 513 * features + 2 * features + 9 * features**2
            c = features
    size += 2 * 640 + 641 * 10
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(WideResNet().init, jax.random.key(0), image, jnp.ones(1))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == size


def test_images_are_brought_to_one_mean_and_variance():
    x = np.random.default_rng(0).normal(3, [[[[0.3]]], [[[5.0]]]], (2, 8, 8, 1)).astype(np.float32)
    value = np.asarray(standardised(x))
    np.testing.assert_allclose(value.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(value.std(axis=(1, 2, 3)), 1, rtol=1e-5)
    assert np.all(standardised(jnp.full((1, 8, 8, 1), 0.25)) == 0)  # no division by zero
    # So that the unit of the image does not matter, if the noise level says the same.
    variables, sigma = some_variables(TINY), jnp.array([0.1, 2.0])
    first, again = (TINY.apply(variables, y, sigma) for y in (x, 2 * x - 1))
    np.testing.assert_allclose(first, again, rtol=1e-3, atol=1e-3 * np.abs(first).max())


def test_a_shortcut_averages_and_pads_with_zeros():
    # With the last convolution at zero, the block is its shortcut.
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
    block, temb = WideBlock(8, 2, activate_shortcut=False), jnp.ones((1, 5))
    variables = block.init(jax.random.key(0), x, temb)
    variables["params"]["conv_1"]["kernel"] *= 0
    value = np.asarray(block.apply(variables, x, temb))
    np.testing.assert_allclose(value[..., :4], x.reshape(1, 2, 2, 2, 2, 4).mean((2, 4)), rtol=1e-6)
    assert np.all(value[..., 4:] == 0)


@pytest.mark.deep
def test_one_classifier_serves_every_sde_at_the_same_noise_level():
    config = importlib.import_module("configs.noisy_classifier.digits").get_config("debug")
    model = noisy_classifier.make_model(config)
    logits, variables = model.classifier(), (some_variables(model.network)["params"], {})
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    sigma = jnp.array([0.05, 1.0, 4.0])
    found = []
    for sde in (VPSDE(), VESDE(sigma_max=10.0)):
        t = sde.time_of_sigma(sigma)
        scale = sde.marginal(t)[0].reshape(-1, 1, 1, 1)
        found.append(logits(variables, sde, scale * x, t))
    # The frequencies of ln sigma reach 2 pi 48: a rounding of t is a thousand roundings there.
    np.testing.assert_allclose(*found, rtol=0, atol=3e-3 * np.abs(found[0]).max())


@pytest.mark.slow
def test_it_learns_to_tell_digits_apart_under_noise(tmp_path):
    from scorejax.train.loop import train

    config = importlib.import_module("configs.noisy_classifier.digits").get_config("")
    config.num_train_steps = config.eval_every = config.save_every = 300
    config.ema_rate, config.eval_examples, config.num_noise_bins = 0.9, 400, 3
    system = systems.load(config)
    variables = averaged(train(system, config, tmp_path))
    found = system.evaluate(jax.random.key(0), variables).scalars
    by_level = [value for name, value in found.items() if name.startswith("accuracy_sigma")]
    # Chance is 0.1, and 0.16 is four standard errors above it; noise hides what a digit is.
    assert by_level[0] > 0.5 and by_level[0] > by_level[1]
    assert found["accuracy"] == pytest.approx(np.mean(by_level))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_stages": 5}, "num_stages=5 needs image_size to be a multiple of 16; got 8"),
        ({"width": 0}, "width needs to be at least 1; got 0"),
        ({"sde": "vpp"}, "unknown sde 'vpp': did you mean 'vp'"),
        ({"best_metric": "loss"}, "unknown best_metric 'loss'"),
        ({"num_noise_bins": 0}, "num_noise_bins needs to be at least 1; got 0"),
        ({"beta_min": 30.0}, "0 <= beta_min < beta_max"),
        ({"grad_clip": -1.0}, "grad_clip needs to be positive, or 0 for none; got -1.0"),
    ],
)
def test_an_impossible_config_is_one_line(change, message):
    config = importlib.import_module("configs.noisy_classifier.digits").get_config("debug")
    config.update(change)
    with pytest.raises(ValueError, match=message) as raised:
        systems.load(config)
    assert "\n" not in str(raised.value)
