# SPDX-License-Identifier: Apache-2.0
"""Transforms of images: dequantised, flipped, resized and fitted as their sets ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from scorejax.data import images, transforms
from scorejax.data.images import IMAGE_SETS


def test_dequantized_levels_are_uniform_in_their_cell():
    # A Kolmogorov-Smirnov test per level; at 1e-6 each, three levels alarm once in 300,000 seeds.
    rng = np.random.default_rng(0)
    for level in (0, 16, 255):
        x = transforms.dequantize(rng, np.full((20_000, 1, 1, 1), level, np.uint8))
        assert x.dtype == np.float32 and x.min() * 256 >= level and x.max() * 256 < level + 1
        assert scipy.stats.kstest(x.ravel() * 256 - level, "uniform").pvalue > 1e-6


def test_both_ends_of_the_levels_reach_both_ends_of_the_range():
    ends = np.array([0, 16], np.uint8)
    np.testing.assert_array_equal(transforms.to_unit(ends, 17), [0, 1])
    np.testing.assert_array_equal(transforms.centre(transforms.to_unit(ends, 17)), [-1, 1])
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    np.testing.assert_array_equal(transforms.centre(transforms.uncentre(x)), x)


def test_flip_mirrors_about_half_of_the_images():
    image = np.arange(1000 * 6, dtype=np.int64).reshape(1000, 1, 6, 1)
    flipped = transforms.flip(np.random.default_rng(0), image)
    mirrored = (flipped == image[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], image[~mirrored])
    # 500 +- 16: five standard deviations.
    assert abs(mirrored.sum() - 500) < 80


@pytest.mark.parametrize("method, name", [(Image.BILINEAR, "linear"), (Image.BICUBIC, "cubic")])
@pytest.mark.parametrize("size", [(13, 9), (40, 44)])
def test_resize_agrees_with_an_antialiased_resampling(method, name, size):
    # Away from black and white, where Pillow clips between its two passes. Each of them rounds.
    image = np.random.default_rng(1).integers(64, 192, (32, 24, 3), dtype=np.uint8)
    resized = transforms.resize(image, *size, method=method)
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), name, antialias=True)
    np.testing.assert_allclose(resized, expected, atol=1.5)


def test_resize_clips_the_overshoot_of_the_bicubic_filter():
    edge = np.repeat(np.array([0, 255], np.uint8), 16)[None, :, None].repeat(32, axis=0)
    resized = transforms.resize(edge, 16, 16, method=Image.BICUBIC)
    assert resized.dtype == np.uint8 and (np.diff(resized[:, :, 0].astype(int)) >= 0).all()


def test_images_are_fitted_as_their_sets_ask():
    image = np.random.default_rng(2).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    face = IMAGE_SETS["celeba"].fit(image, 64)
    np.testing.assert_array_equal(face, transforms.resize(image[39:179, 19:159], 64, 64))
    scene = IMAGE_SETS["lsun_bedroom"].fit
    np.testing.assert_array_equal(scene(image, 128), transforms.resize(image, 157, 128)[14:142])
    square = transforms.resize(image[20:198], 256, 256, method=Image.BICUBIC)
    np.testing.assert_array_equal(scene(image, 256), square)
    np.testing.assert_array_equal(transforms.square(image, 218)[:, :, 0].shape, (218, 218))


def test_digits_can_be_resized():
    loaded = images.load("digits", "test", image_size=16, limit=4)
    expected = jax.image.resize(
        images.load("digits", "test").image[:4].astype(jnp.float32), (4, 16, 16, 1), "linear"
    )
    np.testing.assert_allclose(loaded.image, expected, atol=1.0)
