# SPDX-License-Identifier: Apache-2.0
"""The preprocessing of recovery likelihood against the official numbers."""

import jax
import numpy as np
import pytest

from scorejax.data import transforms
from scorejax.data.images import IMAGE_SETS, Records
from scorejax.data.view import ImageView
from scorejax.evaluate.sample_quality import stored_levels

# The made-up faces of the golden file are 62 x 37: rows 20:-20 of them are no square.
CROPS = {"celeba": lambda image: image[20:-20], "lsun": lambda image: image[:, 4:31]}


@pytest.mark.parametrize("name", CROPS)
def test_pictures_are_resized_as_the_official_ones(golden, name):
    file = golden("j_data")
    resized = transforms.resize_unrounded(CROPS[name](file[f"in/{name}"]), 8, 8)
    expected = file[f"out64/{name}"]
    largest = np.abs(expected).max(axis=(-2, -1), keepdims=True)
    assert np.all(np.abs(resized / 127.5 - 1 - expected) <= 1e-8 * largest)


def test_a_view_of_scenes_gives_the_official_pictures(golden):
    file = golden("j_data")
    name = "lsun_church_square"
    records = Records([{"image": file["in/lsun"]}], IMAGE_SETS[name].fit, 8)
    image = records[0]["image"]
    view = ImageView(name, 8)
    assert image.dtype == np.float32 and view.shape == (8, 8, 3)
    x = view.as_trained(np.random.default_rng(0), image[None])[0]
    # Examples are float32, like the official ones.
    assert x.dtype == np.float32
    assert np.all(np.abs(x - file["out64/lsun"]) <= file["tol/lsun"])


def test_faces_lose_twenty_rows_at_either_end():
    image = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    expected = transforms.resize_unrounded(image[20:-20], 64, 64)
    # Rounded once to float32, at up to 255.
    np.testing.assert_allclose(IMAGE_SETS["celeba_square"].fit(image, 64), expected, atol=1e-5)
    # The sets of other papers keep their crops.
    face = transforms.resize(image[39:179, 19:159], 64, 64)
    np.testing.assert_array_equal(IMAGE_SETS["celeba"].fit(image, 64), face)


@pytest.mark.parametrize("size", [(13, 9), (32, 24), (40, 50)])
def test_resizing_is_that_of_jax(size, x64):
    image = np.random.default_rng(1).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    expected = jax.image.resize(image.astype(float), (*size, 3), "linear", antialias=True)
    # JAX computes the weights of its triangles in single precision, whatever those of the image.
    np.testing.assert_allclose(transforms.resize_unrounded(image, *size), expected, atol=1e-3)


def test_grey_levels_and_back_are_the_official_ones(golden):
    file = golden("j_data")
    levels = np.arange(256, dtype=np.uint8)
    x = transforms.centre(transforms.to_unit(levels))
    assert np.all(np.abs(x - file["out64/from_uint8"]) <= file["tol/from_uint8"])
    back = stored_levels(transforms.uncentre(file["in/x"]))
    np.testing.assert_array_equal(back, file["out/to_uint8"])
