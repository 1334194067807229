# SPDX-License-Identifier: Apache-2.0
"""A folder of pictures is read before it is segmented, and its masks are written whole."""

import numpy as np
import pytest
from PIL import Image

from scorejax.data.nuclei import nuclei
from scorejax.data.picture_files import load_instances
from scorejax.evaluate import segmentation_pictures, segmented_folder
from scorejax.systems import bionet


def test_pictures_that_cannot_be_read_are_named_or_left_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no pictures"):
        segmented_folder.readable(tmp_path)
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"bad\.png is not a readable picture"):
        segmented_folder.readable(tmp_path)
    found = segmented_folder.readable(tmp_path, damaged="skip")
    assert found.paths == (tmp_path / "good.png",) and "bad.png" in found.skipped[0]
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "good.jpg")
    with pytest.raises(ValueError, match="different names; got 2 of 'good'"):
        segmented_folder.readable(tmp_path)


def test_a_picture_whose_probabilities_are_not_finite_gets_no_mask(tmp_path):
    for name, grey in (("good", 9), ("bad", 0)):
        Image.new("RGB", (4, 5), (grey,) * 3).save(tmp_path / f"{name}.png")
    dark = lambda _, image: np.where(image[..., 0] > 0, 0.0, np.nan)
    segment = lambda _, image: bionet.Segmented(dark(_, image), np.zeros((5, 4), np.int32))
    readable = segmented_folder.readable(tmp_path)
    with pytest.raises(RuntimeError, match=r"not finite for 1 of 2 pictures, first .*bad\.png"):
        segmented_folder.segment_pictures(segment, {}, readable, tmp_path / "out")
    kinds = {"good_instances.png", "good_mask.png", "good_overlay.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == kinds


def test_what_is_written_numbers_the_instances(tmp_path):
    image, instances = (part[0] for part in nuclei(1, 32, seed=0))
    segmented_folder.save(tmp_path / "x", image, instances)
    stored = np.asarray(Image.open(tmp_path / "x_instances.png"))
    assert stored.dtype == np.uint16 and np.array_equal(stored, instances)
    mask = np.asarray(Image.open(tmp_path / "x_mask.png"))
    assert np.array_equal(mask, 255 * (instances > 0))
    drawn = np.asarray(Image.open(tmp_path / "x_overlay.png"))
    np.testing.assert_array_equal(drawn[:32], segmentation_pictures.overlay(image, instances))
    assert drawn.shape[0] > 32  # the legend, with a square of the colour
    assert (drawn[32:] == segmentation_pictures.PREDICTION).all(axis=2).sum() > 50


def test_more_instances_than_16_bits_number_are_all_written(tmp_path):
    num = segmented_folder.MOST_INSTANCES + 1
    # Of four pixels each: instances of one pixel are what lossy files invent, and are refused.
    instances = np.arange(1, num + 1, dtype=np.int32).reshape(256, 256)
    instances = instances.repeat(2, axis=0).repeat(2, axis=1)
    image = np.zeros((512, 512, 3), np.uint8)
    segmented_folder.save(tmp_path / "x", image, instances)
    assert {p.name for p in tmp_path.iterdir()} == {
        "x_instances.tif", "x_mask.png", "x_overlay.png"
    }  # fmt: skip
    np.testing.assert_array_equal(load_instances(tmp_path / "x_instances.tif"), instances)
    segmented_folder.save(tmp_path / "y", image, np.minimum(instances, num - 1))
    assert np.asarray(Image.open(tmp_path / "y_instances.png")).max() == num - 1
