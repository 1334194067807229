# SPDX-License-Identifier: Apache-2.0
"""Masks say the same however they are stored; what may mean another thing is one line."""

import numpy as np
import pytest
from PIL import Image

from scorejax.data import picture_files
from scorejax.data.nuclei import nuclei
from tests.test_segmentation_folders import picture, save


def hole():
    """Bool (32, 24): False in a block of 9 x 7 pixels."""
    known = np.ones((32, 24), bool)
    known[5:14, 8:15] = False
    return known


def erased(shade, opaque=255):
    """A picture of one shade, or of noise, that is transparent in the hole."""
    shown = picture(size=(32, 24)) if shade is None else np.full((32, 24, 3), shade, np.uint8)
    return np.dstack([shown, np.where(hole(), opaque, 0).astype(np.uint8)])


@pytest.mark.parametrize(
    "stored",
    [
        hole(), hole().astype(np.uint8), 255 * hole().astype(np.uint8), 3 + hole().astype(np.uint8),
        hole().astype(np.uint16) * 65535, hole().astype(np.float32), hole().astype(np.float32) / 2,
        np.repeat(hole()[..., None], 3, axis=-1).astype(np.uint8), erased(255), erased(None),
        erased(None, 200),
    ],
)  # fmt: skip
def test_a_mask_for_inpainting_says_the_same_however_it_is_stored(stored, tmp_path):
    name = "mask.tif" if stored.dtype == np.float32 else "mask.png"
    found = picture_files.load_known(save(tmp_path / name, stored))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, hole())


def test_a_mask_for_inpainting_with_few_greys_is_thresholded(tmp_path):
    white = 255 * np.kron(hole(), np.ones((8, 8))).astype(np.uint8)
    smooth = white.copy()
    smooth[5 * 8 - 1, 64:120] = 90  # one row of pixels that are neither
    for path in (save(tmp_path / "a.jpg", white, quality=80), save(tmp_path / "b.png", smooth)):
        found = picture_files.load_known(path)
        assert (found != (white > 0)).mean() == (0 if path.suffix == ".jpg" else 56 / white.size)


def test_masks_for_inpainting_that_may_mean_another_thing_are_one_line(tmp_path):
    levels = hole().astype(np.uint8)
    labels, half = levels.copy(), levels * 255
    labels[20:, :] = 2
    half[20:, :] = 128
    two = erased(255)
    two[0, :, :3] = 0  # black and white, and transparent elsewhere
    for name, stored, words in (
        ("one.png", 0 * levels, "two levels, dark where .* made up .*; got 1: 0."),
        ("white.png", np.full_like(levels, 255), "got 1: 255."),
        ("labels.png", labels, "got 3: 0, 1, 2."),
        ("half.png", half, r"38% of them are grey, of levels 3: 0, 128, 255"),
        ("nan.tif", np.where(hole(), 1, np.nan).astype(np.float32), "got 2: 1, nan"),
        ("colours.png", picture(), "got colours"),
        ("strokes.png", erased(0), "white or a picture in its opaque pixels .*; got 1: 0, which"),
        ("two.png", two, "got 2: 0, 255, which may be meant as the mask"),
        ("gone.png", 0 * two, "two levels of opacity, .*; got 1: 0."),
    ):
        path = save(tmp_path / name, stored)
        with pytest.raises(ValueError, match=words) as raised:
            picture_files.load_known(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_lossy_instances_are_noticed_and_exact_ones_are_not(tmp_path):
    section = nuclei(1, 96, seed=4)
    exact = section.instances[0].astype(np.uint8)
    found = picture_files.load_instances(save(tmp_path / "exact.png", exact))
    np.testing.assert_array_equal(found > 0, exact > 0)
    points = np.zeros((32, 32), np.uint8)
    points[::4, ::4] = 1 + np.arange(64).reshape(8, 8)  # annotations of a pixel each
    assert picture_files.load_instances(save(tmp_path / "points.png", points)).max() == 64
    save(tmp_path / "lossy.jpg", exact, quality=95)
    reopened = Image.open(tmp_path / "lossy.jpg")
    smooth = Image.fromarray(exact).resize((64, 64), Image.BILINEAR)
    for path in (
        tmp_path / "lossy.jpg", save(tmp_path / "again.png", reopened),
        save(tmp_path / "smooth.png", smooth),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="needs exact levels to number instances") as raised:
            picture_files.load_instances(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
