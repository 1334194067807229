# SPDX-License-Identifier: Apache-2.0
"""What is made agrees with what was seen, whatever the network; a path has its ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.score_sde import photo_patches
from scorejax.score_model.control import measurement
from scorejax.systems import load_model
from tests.random_variables import random_variables

REST = ("colorize", "super_resolution", "deblur", "fourier")


@pytest.fixture(scope="module")
def colour():
    """A tiny model of 8 x 8 colour images that was never trained, and images."""
    config = photo_patches.get_config("debug")
    config.image_size, config.attn_resolutions, config.num_sampling_steps = 8, (), 25
    config.ch_mult, config.nf, config.rtol, config.atol = (1,), 8, 1e-5, 1e-5
    model = load_model(config)
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3), minval=-1)
    variables = random_variables(model.network, x, jnp.ones(4), seed=0, mean=0.0, std=0.02)
    return model, (variables["params"], {}), x


@pytest.mark.parametrize(
    "task", ["inpaint", *(pytest.param(t, marks=pytest.mark.slow) for t in REST)]
)
def test_what_is_made_agrees_with_what_was_seen_and_not_with_the_rest(colour, task):
    model, variables, x = colour
    operator = measurement(task, (8, 8, 3))
    complete = jax.jit(model.completion(operator))
    found = complete(variables, {"image": x, "rng": jax.random.split(jax.random.key(1), 4)})
    made, seen = (2 * found[name] - 1 for name in ("image", "measured"))
    # Rounding of single precision at the size that numbers have on the way; blur loses 20-fold.
    atol = 2e-6 * np.abs(made).max()
    np.testing.assert_allclose(operator.forward(made), operator.forward(x), atol=atol)
    np.testing.assert_allclose(operator.project(made), seen, atol=20 * atol)
    assert np.abs(made - x).max() > 0.1 and np.isfinite(made).all()


def test_measurements_see_what_they_say():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    see = lambda task, **options: np.asarray(
        measurement(task, x.shape[1:], **options).forward(jnp.asarray(x))
    )
    np.testing.assert_array_equal(see("inpaint")[:, :4], x[:, :4])
    assert not see("inpaint")[:, 4:].any()
    mask = np.eye(8, dtype=bool)
    np.testing.assert_array_equal(see("inpaint", mask=mask), x * mask[..., None])
    np.testing.assert_allclose(see("colorize")[..., 0], x.sum(-1) / np.sqrt(3), atol=1e-5)
    blocks = x.reshape(2, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(see("super_resolution", factor=4), blocks, atol=1e-6)
    # A blur keeps the mean; a Fourier measurement has the mean as its first coefficient.
    np.testing.assert_allclose(see("deblur").mean((1, 2)), x.mean((1, 2)), atol=1e-6)
    spectrum = see("fourier", seed=3)
    np.testing.assert_allclose(spectrum[:, 0, 0, :3], 8 * x.mean((1, 2)), atol=1e-5)
    kept = (spectrum != 0).any(axis=(0, 3)).mean()
    assert 0.3 < kept < 0.7 and (see("fourier", seed=4) != spectrum).any()


@pytest.mark.slow
def test_an_interpolation_begins_and_ends_with_its_images(colour):
    model, variables, x = colour
    path = jax.jit(model.interpolation(3))
    frames = path(variables, {"start": x[:2], "end": x[2:]})["image"]
    assert frames.shape == (2, 3, 8, 8, 3)
    # There and back by a solver of 1e-5, of which the way from noise to data makes a thousandfold.
    np.testing.assert_allclose(2 * frames[:, 0] - 1, x[:2], atol=1e-2)
    np.testing.assert_allclose(2 * frames[:, 2] - 1, x[2:], atol=1e-2)
    assert np.abs(frames[:, 1] - frames[:, 0]).max() > 0.1


def test_a_measurement_that_cannot_be_is_named():
    with pytest.raises(ValueError, match="task 'colorize' needs a model of colour images"):
        measurement("colorize", (8, 8, 1))
    with pytest.raises(ValueError, match="factor needs to be 2 or more and to divide"):
        measurement("super_resolution", (8, 8, 1), factor=1)
    with pytest.raises(ValueError, match="mask needs values of 0 and 1; got 0, 255"):
        measurement("inpaint", (8, 8, 1), mask=255 * np.eye(8, dtype=int))
    with pytest.raises(ValueError, match="unknown task 'inpant': did you mean 'inpaint'"):
        measurement("inpant", (8, 8, 1))
