# SPDX-License-Identifier: Apache-2.0
"""Masks of several classes: read exactly, encoded, scored as scikit-learn does, written again."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import f1_score, jaccard_score

from scorejax.data import segmentation, segmentation_folders
from scorejax.data.augmentation import Augmentation
from scorejax.data.nuclei import nuclei, nuclei_in_focus
from scorejax.data.picture_files import IGNORED, load_instances, load_mask
from scorejax.data.segmentation_targets import Encoding, class_regions, load_classes
from scorejax.evaluate import class_scores, segmentation_pictures, segmented_folder
from tests.test_segmentation_data import draw
from tests.test_segmentation_folders import picture, save

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 4, (12, 10)).astype(np.uint8)
WITH_HOLE = np.where(RNG.random((12, 10)) < 0.2, 255, CLASSES).astype(np.uint8)
CLASSED = {"masks": "classes", "num_classes": 4, "ignore_label": 255}


def paletted(levels):
    """A picture whose indices are the levels; their colours say nothing."""
    stored = Image.fromarray(levels)
    stored.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    return stored


def test_levels_and_indices_of_a_palette_are_classes(tmp_path):
    expected = np.where(WITH_HOLE == 255, IGNORED, WITH_HOLE.astype(np.int32))
    for name, stored in (
        ("grey.png", WITH_HOLE), ("palette.png", paletted(WITH_HOLE)),
        ("deep.png", WITH_HOLE.astype(np.uint16)), ("rgb.png", np.dstack([WITH_HOLE] * 3)),
    ):  # fmt: skip
        path = save(tmp_path / name, stored)
        found = load_classes(path, num_classes=4, ignore_label=255)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)


def test_masks_that_are_no_classes_are_one_line(tmp_path):
    smooth = Image.fromarray(CLASSES * 60).resize((40, 48), Image.BILINEAR)
    for name, stored, words in (
        ("more.png", CLASSES, "needs the levels 0 to 2, one for each class; got 4: 0, 1, 2, 3"),
        ("hole.png", WITH_HOLE, "got 5: 0, 1, 2, 3, …. Set num_classes, or ignore_label"),
        ("smooth.png", smooth, "needs the levels 0 to 2"),
        ("colours.png", picture(), "got colours"),
        ("lossy.jpg", 2 * (CLASSES > 1).astype(np.uint8), "JPEG and WebP invent levels"),
    ):
        path = save(tmp_path / name, stored)
        with pytest.raises(ValueError, match=words) as raised:
            load_classes(path, num_classes=3)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_level_is_ignored_in_masks_of_every_kind(tmp_path):
    inside, hole = np.zeros((12, 10), np.uint8), np.zeros((12, 10), bool)
    inside[1:4, 1:4], inside[6:10, 2:9] = 1, 1
    hole[2:8, 5:] = True
    numbers = ndimage.label(inside)[0].astype(np.uint8)
    mask = save(tmp_path / "mask.png", np.where(hole, 255, inside))
    numbered = save(tmp_path / "numbers.png", np.where(hole, 255, numbers))
    expected = np.where(hole, IGNORED, numbers.astype(np.int32))
    np.testing.assert_array_equal(load_mask(mask, ignore_label=255), expected)
    np.testing.assert_array_equal(load_instances(numbered, ignore_label=255), expected)
    image = segmentation.AnnotatedImage.of_instances("a", picture(), expected)
    np.testing.assert_array_equal(image.known, ~hole)
    np.testing.assert_array_equal(image.mask, (inside > 0) & ~hole)
    lossy = save(tmp_path / "lossy.jpg", 255 * inside)
    with pytest.raises(ValueError, match="needs exact levels with ignore_label=3; it may be lossy"):
        load_mask(lossy, ignore_label=3)


def test_a_folder_of_class_masks_becomes_batches_of_classes(tmp_path):
    save(tmp_path / "images" / "a.png", picture(1))
    save(tmp_path / "masks" / "a.png", paletted(WITH_HOLE))
    (image,) = segmentation_folders.read(tmp_path, **CLASSED).annotated
    np.testing.assert_array_equal(image.known, WITH_HOLE < 255)
    encoding = Encoding(num_classes=4, ignores=True)
    source = segmentation.segmentation_source([image], 16, side=4, encoding=encoding)
    (batch,) = draw(source, 0, 1)
    assert batch["mask"].shape == (16, 4, 4, 4) and batch["known"].shape == (16, 4, 4)
    np.testing.assert_array_equal(batch["mask"].sum(axis=-1), batch["known"])
    pieces = np.lib.stride_tricks.sliding_window_view(WITH_HOLE, (4, 4)).reshape(-1, 4, 4)
    for mask, known in zip(batch["mask"], batch["known"], strict=True):
        levels = np.where(known > 0, mask.argmax(axis=-1), 255)
        assert (levels == pieces).all(axis=(1, 2)).any()
    corners = segmentation.corner_patches(image, 6)
    np.testing.assert_array_equal(corners[-1].classes, image.classes[-6:, -6:])
    with pytest.raises(ValueError, match="polygons of instances; masks='classes' needs pictures"):
        segmentation_folders.read(tmp_path, "monuseg", **CLASSED)


def test_classes_move_with_the_picture():
    # Levels of a class are 60 times its number: the nearest pixel of either is that of the other.
    classes = ndimage.zoom(RNG.integers(0, 4, (8, 8)), 8, order=0).astype(np.int32)
    image = np.repeat((60 * classes)[..., None], 3, axis=-1).astype(np.uint8)
    annotated = segmentation.AnnotatedImage.of_classes("a", image, classes)
    turned = Augmentation(translation=0, shear=0, scale=0)
    encoding = Encoding(num_classes=4)
    source = segmentation.segmentation_source(
        [annotated], 4, side=64, augmentation=turned, encoding=encoding
    )
    (batch,) = draw(source, 0, 1)
    found = batch["mask"].argmax(axis=-1)
    # Bilinear levels differ from the nearest pixel's at the rims of the blocks of 8 x 8 alone.
    assert np.mean(np.abs(batch["image"][..., 0] * 255 / 60 - found) < 0.5) > 0.9
    assert len(np.unique(found)) == 4


def test_drawn_nuclei_are_in_focus_or_not():
    drawn, plain = nuclei_in_focus(6, 64, 3), nuclei(6, 64, 3)
    np.testing.assert_array_equal(drawn.images, plain.images)
    np.testing.assert_array_equal(drawn.classes > 0, plain.instances > 0)
    sharp = []
    for image, instances, classes in zip(*drawn, strict=True):
        slope = ndimage.gaussian_gradient_magnitude(image[..., 0].astype(float), 1)
        for number in range(1, instances.max() + 1):
            (value,) = np.unique(classes[instances == number])
            inside = instances == number
            rim = inside & ~ndimage.binary_erosion(inside)
            sharp.append((value, slope[rim].mean()))
    value, slope = np.array(sharp).T
    assert 0.1 < np.mean(value == 2) < 0.4  # a quarter of 100: four standard errors are 0.17
    assert slope[value == 1].mean() > 1.3 * slope[value == 2].mean()
    with pytest.raises(ValueError, match="num_classes to be 1 or 3; got 4"):
        segmentation.generated(1, 32, 0, num_classes=4)


def test_scores_of_classes_are_those_of_scikit_learn():
    truths = RNG.integers(-1, 4, (5, 12, 10))
    guesses = np.where(RNG.random(truths.shape) < 0.5, truths.clip(0), RNG.integers(0, 4, (12, 10)))
    counts = [class_scores.class_counts(*pair, 5) for pair in zip(truths, guesses, strict=True)]
    summary = class_scores.class_summary(counts)
    known = truths >= 0
    for name, score in (("iou", jaccard_score), ("dice", f1_score)):
        expected = score(truths[known], guesses[known], average=None)
        found = [summary[f"{name}_{number}"].mean for number in range(5)]
        np.testing.assert_allclose(found[:4], expected, rtol=1e-12)
        assert np.isnan(found[4])  # a class that is nowhere
        interval = summary[f"mean_{name}"]
        assert interval.mean == pytest.approx(expected.mean(), rel=1e-12)
        assert interval.low < interval.mean < interval.high
    alone = class_scores.class_summary(counts[:1])
    assert np.isnan(alone["mean_iou"].low) and alone["mean_iou"].mean > 0


@pytest.mark.deep
def test_intervals_of_classes_cover_as_often_as_they_say():
    # Pictures are independent: the share of the pixels that agree is binomial, of mean 0.6. An IoU
    # of one class that is everywhere in the truth is that share. 200 intervals of 95 % cover 190
    # times, give or take 3.1; bootstraps of 30 pictures are too short by some per cent.
    rng, covered = np.random.default_rng(1), 0
    for seed in range(200):
        agree = rng.binomial(50, rng.beta(6, 4, 30))
        counts = [np.array([[a, 50 + a]]) for a in agree]
        interval = class_scores.class_summary(counts, seed=seed)["iou_0"]
        covered += interval.low <= 0.6 <= interval.high
    assert 175 <= covered <= 199


def test_what_is_written_is_read_as_the_same_classes(tmp_path):
    classes = CLASSES.astype(np.int32)
    segmented_folder.save_classes(tmp_path / "x", picture(), classes, 4)
    assert {p.name for p in tmp_path.iterdir()} == {"x_classes.png", "x_overlay.png"}
    np.testing.assert_array_equal(load_classes(tmp_path / "x_classes.png", num_classes=4), classes)
    # The colours of Pascal VOC begin with black, dark red, dark green and dark yellow.
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    np.testing.assert_array_equal(segmentation_pictures.class_colours(4), expected)
    shown = np.asarray(Image.open(tmp_path / "x_classes.png").convert("RGB"))
    np.testing.assert_array_equal(shown, np.array(expected)[classes])
    overlay = np.asarray(Image.open(tmp_path / "x_overlay.png"))
    np.testing.assert_array_equal(overlay[classes == 0], picture()[classes == 0])


def test_regions_of_classes_are_numbered_without_gaps():
    classes = np.array([[1, 1, 0, 2], [2, 0, 1, 2], [2, 2, 1, 1]])
    regions = class_regions(classes)
    assert set(np.unique(regions)) == {0, 1, 2, 3, 4}
    assert ((regions > 0) == (classes > 0)).all() and regions[0, 0] != regions[1, 2]
