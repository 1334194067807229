# SPDX-License-Identifier: Apache-2.0
"""Drawn and photographed images with masks, and their batches: exact, and the same again."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import ndimage

from scorejax.data import segmentation_photographs
from scorejax.data.augmentation import Augmentation, augment, random_map
from scorejax.data.nuclei import nuclei
from scorejax.data.segmentation import (
    AnnotatedImage,
    corner_patches,
    generated,
    segmentation_source,
)

KEY = jax.random.key(3)
STILL = Augmentation(rotation=0, translation=0, shear=0, scale=0, flip=False)


def draw(source, start_step, num_steps, key=KEY):
    carry, drawn = source.init(start_step, key), []
    for _ in range(num_steps):
        carry, batch = source.next(carry, None, KEY)
        drawn.append(batch)
    return drawn


# Drawn nuclei.


def test_a_drawn_section_depends_on_the_seed_and_its_place_alone():
    few, many = nuclei(2, 48, 5), nuclei(4, 48, 5)
    np.testing.assert_array_equal(few.images, many.images[:2])
    np.testing.assert_array_equal(few.instances, many.instances[:2])
    assert (nuclei(2, 48, 6).images != few.images).any()
    assert few.images.dtype == np.uint8 and few.instances.dtype == np.int32
    assert nuclei(1, 544, 0).images.shape == (1, 544, 544, 3)  # Larger than the tissue.


def test_drawn_instances_are_single_regions_numbered_without_gaps():
    touching = total = 0
    for instances in nuclei(8, 64, 0).instances:
        count = instances.max()
        assert set(np.unique(instances)) == set(range(count + 1))
        for number in range(1, count + 1):
            assert ndimage.label(instances == number)[1] == 1
        total += count
        touching += count - ndimage.label(instances > 0)[1]
    # Half are drawn beside another, so about half of the regions are joined; a quarter is safe.
    assert touching > total / 4


def test_drawn_nuclei_are_where_the_masks_say():
    from skimage.color import rgb2hed
    from sklearn.metrics import roc_auc_score

    drawn = nuclei(6, 96, 1)
    for image, instances in zip(*drawn, strict=True):
        blue = rgb2hed(image)[..., 0].ravel()
        # Haematoxylin tells nuclei from tissue, but not without errors: that is the task.
        assert 0.85 < roc_auc_score(instances.ravel() > 0, blue) < 1
        # Pixel for pixel: a mask moved by 4 pixels explains the stain less well.
        moved = np.roll(instances, 4, axis=0).ravel() > 0
        assert roc_auc_score(moved, blue) < roc_auc_score(instances.ravel() > 0, blue) - 0.03


# Batches.


def test_batches_depend_on_the_key_and_the_step_alone():
    annotated = generated(5, 40, 0)
    source = segmentation_source(annotated, 2, side=32, augmentation=Augmentation())
    straight, resumed = draw(source, 0, 4), draw(source, 2, 2)
    for batch, again in zip(straight[2:], resumed, strict=True):
        assert all((batch[name] == again[name]).all() for name in ("image", "mask"))
    other = draw(source, 0, 1, jax.random.key(4))[0]
    assert (other["image"] != straight[0]["image"]).any()
    image, mask = straight[0]["image"], straight[0]["mask"]
    assert image.shape == (2, 32, 32, 3) and mask.shape == (2, 32, 32, 1)
    assert image.dtype == mask.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1 and set(np.unique(mask)) == {0, 1}


def test_an_epoch_takes_every_image_once():
    flat = np.zeros((8, 8), np.int32)
    annotated = [
        AnnotatedImage(str(i), np.full((8, 8, 3), 10 * i, np.uint8), flat) for i in range(6)
    ]
    levels = [b["image"][:, 0, 0, 0] for b in draw(segmentation_source(annotated, 2, side=4), 0, 6)]
    rounded = (np.concatenate(levels) * 25.5).round().astype(int)
    assert sorted(rounded[:6]) == sorted(rounded[6:]) == list(range(6))
    assert list(rounded[:6]) != list(rounded[6:])  # In another order: equal in 1 of 720 keys.


def test_pieces_of_image_and_mask_come_from_one_place():
    instances = (np.random.default_rng(0).random((50, 60)) < 0.5).astype(np.int32)
    image = np.repeat(instances[..., None] * 255, 3, axis=-1).astype(np.uint8)
    source = segmentation_source([AnnotatedImage("own mask", image, instances)], 8, side=16)
    (batch,) = draw(source, 0, 1)
    np.testing.assert_array_equal(batch["image"], np.repeat(batch["mask"], 3, axis=-1))
    assert len({piece.tobytes() for piece in batch["mask"]}) == 8


def test_corner_patches_of_monuseg_images_are_four_that_cover_all():
    instances = np.arange(100, dtype=np.int32).reshape(10, 10)
    whole = AnnotatedImage("a", np.zeros((10, 10, 3), np.uint8), instances)
    patches = corner_patches(whole, 6)
    assert [patch.name for patch in patches] == ["a@0,0", "a@0,4", "a@4,0", "a@4,4"]
    np.testing.assert_array_equal(patches[1].instances, instances[:6, 4:])
    assert set(np.concatenate([p.instances.ravel() for p in patches])) == set(range(100))
    assert len(corner_patches(whole, 10)) == 1


# Augmentation.


def test_movements_keep_to_the_published_ranges():
    rng = np.random.default_rng(0)
    maps = np.array([random_map(rng, Augmentation(), 100, 200) for _ in range(2000)])
    scale = np.sqrt(np.abs(np.linalg.det(maps)))
    # 2000 uniform draws come within 1 % of both ends but for once in 500 million times.
    assert 0.8 <= scale.min() < 0.804 and 1.196 < scale.max() <= 1.2
    mirrored = np.linalg.det(maps) < 0
    assert abs(mirrored.mean() - 0.5) < 0.06  # Five standard errors of a fair coin.
    only = dataclasses.replace(STILL, translation=0.05)
    shifts = np.array([random_map(rng, only, 100, 200) for _ in range(500)])[:, :2, 2]
    assert (np.abs(shifts) <= [10, 5]).all() and (np.abs(shifts).max(axis=0) > [9.5, 4.75]).all()
    turned = random_map(rng, dataclasses.replace(STILL, rotation=15.0), 9, 9)
    assert np.linalg.norm(turned[:2, :2] @ [1, 0]) == pytest.approx(1)
    assert abs(np.rad2deg(np.arctan2(turned[1, 0], turned[0, 0]))) <= 15
    slanted = random_map(rng, dataclasses.replace(STILL, shear=50.0), 9, 9)
    assert abs(slanted[0, 1]) <= np.tan(np.deg2rad(50)) and slanted[1, 0] == 0
    np.testing.assert_allclose(slanted @ [4, 4, 1], [4, 4, 1], atol=1e-12)  # About the centre.


def test_no_movement_changes_nothing():
    drawn = generated(1, 32, 0)[0]
    image, mask = augment(np.random.default_rng(0), drawn.image, drawn.mask, STILL)
    np.testing.assert_array_equal(image, drawn.image)
    np.testing.assert_array_equal(mask, drawn.mask)


def test_a_spot_moves_to_where_the_map_says_and_its_mask_with_it():
    row, column = np.mgrid[:80, :96]
    mask = (row - 30) ** 2 + (column - 60) ** 2 <= 36
    image = np.repeat(255 * mask[..., None], 3, axis=-1).astype(np.uint8)
    for seed in range(8):
        moved, marked = augment(np.random.default_rng(seed), image, mask, Augmentation())
        matrix = random_map(np.random.default_rng(seed), Augmentation(), 80, 96)
        centre = (matrix @ [60, 30, 1])[1::-1]
        if not (15 < centre[0] < 65 and 20 < centre[1] < 76):
            continue  # Part of the spot may have left the picture.
        # Bilinear weights keep a centre of mass but for grey levels rounded at the rim; a mask goes
        # by whole pixels, so it may be half of one away.
        grey = moved[..., 0].astype(float)
        np.testing.assert_allclose(ndimage.center_of_mass(grey), centre, atol=0.05)
        np.testing.assert_allclose(ndimage.center_of_mass(marked), centre, atol=0.5)
        # Interpolated grey exceeds one half where the nearest pixel is white, but for the rim.
        assert ((grey > 127) != marked).sum() < 0.15 * marked.sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shear": 90}, "0 <= shear < 90"), ({"scale": -1}, "scale"), ({"border": "x"}, "border")],
)
def test_impossible_movements_are_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**change)


# Photographs.


def test_the_coins_are_counted_and_the_cell_is_round():
    def whole(name):
        halves = [segmentation_photographs.photograph(name, s) for s in ("train", "test")]
        return tuple(np.concatenate([getattr(h, f) for h in halves], 1) for f in ("image", "mask"))

    _, coins = whole("coins")
    regions, count = ndimage.label(coins)
    areas = np.bincount(regions.ravel())[1:]
    # Six columns of four coins; what else is found is the bright edge of the plate.
    assert 24 <= count <= 26 and (areas > 800).sum() == 24
    _, cell = whole("cell")
    ys, xs = np.nonzero(cell)
    # A disc has area pi d^2 / 4 for both extents d; 5 % for its pixels and for the cell.
    np.testing.assert_allclose(len(ys) / (np.ptp(ys) * np.ptp(xs)), np.pi / 4, rtol=0.05)
    assert not segmentation_photographs.photograph("cell", "train").mask.any()


def test_weak_masks_hold_what_their_rule_is_about():
    stained = segmentation_photographs.photograph("ihc", "test")
    inside, outside = (stained.image[m].mean(axis=0) for m in (stained.mask, ~stained.mask))
    assert inside[2] - inside[0] > outside[2] - outside[0] + 20  # Nuclei are bluer.
    assert 0.15 < stained.mask.mean() < 0.4 and stained.instances.max() > 80
    eye = segmentation_photographs.photograph("retina", "test")
    green = eye.image[..., 1].astype(float)
    vessel = eye.mask
    beside = ndimage.binary_dilation(vessel, iterations=6) & ~ndimage.binary_dilation(
        vessel, iterations=2
    )
    assert green[vessel].mean() < green[beside].mean() - 5  # Vessels are darker than around them.
    assert 0.03 < vessel.mean() < 0.15
    with pytest.raises(ValueError, match="did you mean 'coins'"):
        segmentation_photographs.photograph("coin", "test")


def test_sources_without_images_or_with_small_ones_are_one_line():
    with pytest.raises(ValueError, match="at least one annotated image"):
        segmentation_source([], 2, side=8)
    with pytest.raises(ValueError, match="needs at least 64 x 64 pixels; got 32 x 32"):
        segmentation_source(generated(1, 32, 0), 2, side=64)
    with pytest.raises(ValueError, match="nuclei needs num >= 1"):
        nuclei(0, 32, 0)
