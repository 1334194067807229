# SPDX-License-Identifier: Apache-2.0
"""Pictures of any channels and depth are read as they were written, and normalised one by one."""

import numpy as np
import pytest
import tifffile

from scorejax.data import channels
from scorejax.data.appearance import Appearance, vary
from tests.test_segmentation_folders import picture, save

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 60_000, (12, 10, 5)).astype(np.uint16)


def stored(path, array, **options):
    tifffile.imwrite(path, array, **options)
    return path


def test_channels_are_read_interleaved_as_planes_and_as_pages(tmp_path):
    pages = np.moveaxis(DEEP, 2, 0)
    for name, array, options in (
        ("interleaved.tif", DEEP, {"photometric": "minisblack", "planarconfig": "contig"}),
        ("planes.tif", pages, {"photometric": "minisblack", "planarconfig": "separate"}),
        ("pages.tiff", pages, {"photometric": "minisblack"}),
    ):
        found = channels.load_channels(stored(tmp_path / name, array, **options), 5)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, DEEP)
    floats = stored(tmp_path / "floats.tif", DEEP.astype(np.float32) / 7)
    np.testing.assert_array_equal(channels.load_channels(floats, 5), DEEP.astype(np.float32) / 7)


def test_pictures_of_one_and_of_three_channels_keep_their_bits(tmp_path):
    deep = save(tmp_path / "deep.png", DEEP[..., 0])
    np.testing.assert_array_equal(channels.load_channels(deep, 1), DEEP[..., :1])
    np.testing.assert_array_equal(channels.load_channels(deep, 3)[..., 2], DEEP[..., 0])
    rgb = stored(tmp_path / "rgb.tif", DEEP[..., :3], photometric="rgb")
    np.testing.assert_array_equal(channels.load_channels(rgb, 3), DEEP[..., :3])
    for name, array in (("lzw.tif", picture()), ("deep_lzw.tif", DEEP[..., 0])):  # by Pillow alone
        packed = save(tmp_path / name, array, compression="tiff_lzw")
        found = channels.load_channels(packed, 3)
        np.testing.assert_array_equal(found[..., 1], array if array.ndim == 2 else array[..., 1])
    flat = save(tmp_path / "flat.png", picture())
    np.testing.assert_array_equal(channels.load_channels(flat, 3), picture())
    grey = save(tmp_path / "grey.png", picture()[..., 0])
    np.testing.assert_array_equal(channels.load_channels(grey, 1), picture()[..., :1])


def test_other_channels_and_numbers_are_one_line(tmp_path):
    nan = np.full((4, 5), np.nan, np.float32)
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(b"II*\x00 nothing")
    for path, num, words in (
        (stored(tmp_path / "five.tif", DEEP, photometric="minisblack"), 4, "=4 channels; got 5"),
        (save(tmp_path / "rgb.png", picture()), 2, "num_channels=2 channels; got 3, of 12 x 10"),
        (stored(tmp_path / "nan.tif", nan), 1, "finite"),
        (stored(tmp_path / "complex.tif", nan.astype(complex)), 1, "real numbers; got complex"),
        (stored(tmp_path / "stack.tif", np.zeros((2, 9, 9, 3), np.uint8)), 3, "channels, h, w"),
        (damaged, 3, "is not a readable picture"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as raised:
            channels.load_channels(path, num)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_each_channel_of_each_picture_is_normalised_by_itself():
    percentiles = channels.normalised("a", DEEP, "percentiles")
    for channel in range(5):
        found = np.percentile(percentiles[..., channel], (channels.LOW, channels.HIGH))
        # The ends are differences of numbers of size 1 in single precision.
        np.testing.assert_allclose(found, [0, 1], atol=1e-6)
    standard = channels.normalised("a", DEEP, "standard")
    np.testing.assert_allclose(standard.mean((0, 1)), 0, atol=1e-6)  # as above
    np.testing.assert_allclose(standard.std((0, 1)), 1, atol=1e-6)
    assert percentiles.dtype == standard.dtype == np.float32
    dark = np.concatenate([0 * DEEP[..., :1] + 300, DEEP // 50], axis=2)  # another exposure
    brighter = channels.normalised("a", dark, "percentiles")
    assert np.all(brighter[..., 0] == 0)
    # Fifty levels become one: rounding moves a pixel by at most 50 of 60,000 levels, over 0.97.
    np.testing.assert_allclose(brighter[..., 1:], percentiles, atol=2e-3)
    np.testing.assert_array_equal(channels.normalised("a", picture(), "levels"), picture())
    with pytest.raises(ValueError, match='a needs 8 bits per channel with normalisation="levels"'):
        channels.normalised("a", DEEP, "levels")


def test_any_picture_is_shown_in_three_colours():
    np.testing.assert_array_equal(channels.displayed(picture()), picture())
    for num in (1, 2, 3, 5):
        shown = channels.displayed(channels.normalised("a", DEEP[..., :num], "standard"))
        assert shown.shape == (12, 10, 3) and shown.dtype == np.uint8
        assert shown[..., 0].min() == 0 and shown[..., 0].max() == 255
    assert np.all(channels.displayed(DEEP[..., :2])[..., 2] == 0)


def test_changes_of_appearance_have_the_moments_that_they_say():
    rng, grey = np.random.default_rng(0), np.full((40, 50, 2), 0.5, np.float32)
    drawn = [vary(rng, grey, Appearance(noise=0.2)) for _ in range(200)]
    deviation = np.array([one.std() for one in drawn])
    # A deviation of 4000 values has a relative error of 1.1 %; 200 uniform draws reach within 5 %
    # of both ends but for once in 30,000 times each.
    assert deviation.max() < 0.2 * 1.05 and deviation.max() > 0.95 * 0.2 and deviation.min() < 0.01
    drawn = [vary(rng, grey, Appearance(colour=0.4))[0, 0] for _ in range(300)]
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    assert (low >= 0.3 - 1e-6).all() and (low < 0.31).all() and (high > 0.69).all()
    assert abs(np.corrcoef(np.transpose(drawn))[0, 1]) < 0.25  # four errors of no correlation
    drawn = np.array([vary(rng, grey, Appearance(brightness=0.1))[0, 0] for _ in range(300)])
    np.testing.assert_allclose(drawn[:, 0], drawn[:, 1], atol=1e-6)  # one draw for both channels
    assert np.abs(drawn - 0.5).max() <= 0.1 + 1e-6 and np.abs(drawn - 0.5).max() > 0.097
    assert not Appearance().changes


def test_blur_spreads_a_point_and_keeps_its_light():
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    column = np.arange(41) - 20
    sigmas = []
    for seed in range(20):
        blurred = vary(np.random.default_rng(seed), point, Appearance(blur=3.0))
        np.testing.assert_allclose(blurred.sum(), 1, rtol=1e-5)  # single precision
        sigmas.append(np.sqrt((blurred.sum((0, 2)) * column**2).sum()))
    # The kernel is cut off at four deviations, which leaves out 0.05 % of the second moment.
    assert max(sigmas) <= 3 * 1.01 and max(sigmas) - min(sigmas) > 2


@pytest.mark.parametrize("change", [{"noise": -1.0}, {"colour": 1.0}, {"blur": np.inf}])
def test_impossible_changes_are_one_line(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"augmentation needs 0 <= {name} <"):
        Appearance(**change)
