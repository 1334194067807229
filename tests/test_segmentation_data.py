# SPDX-License-Identifier: Apache-2.0
"""Drawn, photographed and stored images with masks: exact, the same again, or refused in a line."""

import dataclasses
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from scorejax.data import picture_files, polygons, segmentation_folders, segmentation_photographs
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


# Files.


def picture(seed=0, size=(12, 10)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def blocks(size=(12, 10)):
    """Two blocks that do not touch, as 0 and 255."""
    mask = np.zeros(size, np.uint8)
    mask[1:4, 1:4], mask[6:10, 2:9] = 255, 255
    return mask


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path, **options)
    return path


@pytest.mark.parametrize("names", [("images", "masks"), ("x", "y")])
def test_folders_are_read_as_they_were_written(names, tmp_path):
    for index, suffix in enumerate((".png", ".tif", ".png")):
        save(tmp_path / names[0] / f"s{index}{suffix}", picture(index))
        save(tmp_path / names[1] / f"s{index}.png", blocks())
    reading = segmentation_folders.read(tmp_path)
    assert [a.name[-6:] for a in reading.annotated] == ["s0.png", "s1.tif", "s2.png"]
    for index, annotated in enumerate(reading.annotated):
        np.testing.assert_array_equal(annotated.image, picture(index))
        np.testing.assert_array_equal(annotated.mask, blocks() > 0)
        assert annotated.instances.max() == 2
    assert not reading.skipped


def test_the_layout_of_tnbc_pairs_slides_with_their_truth(tmp_path):
    for slide in ("01", "02"):
        for index in (1, 2):
            opaque = Image.fromarray(picture(int(slide) + index)).convert("RGBA")
            save(tmp_path / f"Slide_{slide}" / f"{slide}_{index}.png", opaque)
            save(tmp_path / f"GT_{slide}" / f"{slide}_{index}.png", blocks())
    annotated = segmentation_folders.read(tmp_path, "tnbc").annotated
    assert len(annotated) == 4 and annotated[2].name.endswith("Slide_02/02_1.png")
    np.testing.assert_array_equal(annotated[3].image, picture(4))


def region(*vertices):
    inside = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
    return f"<Region><Vertices>{inside}</Vertices></Region>"


def annotations(path, *regions):
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "<Annotations><Annotation><Regions>{}</Regions></Annotation></Annotations>"
    path.write_text(body.format("".join(regions)))
    return path


def test_polygons_of_known_area_cover_as_many_pixels(tmp_path):
    # No pixel's centre lies on a side, and rectangles of whole sides hold as many as their area.
    box = region((1.5, 2.5), (11.5, 2.5), (11.5, 8.5), (1.5, 8.5))
    triangle = [(20.3, 3.1), (70.2, 30.7), (31.6, 77.9)]
    path = annotations(tmp_path / "a.xml", box, region(*triangle))
    instances = polygons.load_polygons(path, (80, 90))
    assert (instances == 1).sum() == 60 and instances[3, 2] == instances[8, 11] == 1
    (x1, y1), (x2, y2), (x3, y3) = triangle
    area = abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)) / 2
    # Lattice points in a convex figure: area to within half the perimeter, here 0.8 % is found.
    assert (instances == 2).sum() == pytest.approx(area, rel=0.02)
    row, column = np.mgrid[:80, :90]
    side = lambda a, b: (b[0] - a[0]) * (row - a[1]) - (b[1] - a[1]) * (column - a[0])
    corners = zip(triangle, triangle[1:] + triangle[:1], strict=True)
    exact = np.all([side(a, b) > 0 for a, b in corners], axis=0)
    np.testing.assert_array_equal(instances == 2, exact)


def test_a_pixel_of_two_polygons_belongs_to_the_first_and_lost_ones_have_no_number(tmp_path):
    first = region((-3, -3), (5.5, -3), (5.5, 5.5), (-3, 5.5))
    second = region((2.5, 2.5), (8.5, 2.5), (8.5, 8.5), (2.5, 8.5))
    hidden, line = region((1, 1), (3, 1), (3, 3), (1, 3)), region((0, 0), (9, 9))
    outside = region((50, 50), (60, 50), (60, 60))
    path = annotations(tmp_path / "a.xml", first, hidden, line, outside, second)
    instances = polygons.load_polygons(path, (10, 10))
    assert (instances == 1).sum() == 36 and (instances == 2).sum() == 36 - 9
    assert instances.max() == 2


def test_the_layout_of_monuseg_pairs_images_with_polygons_wherever_they_are(tmp_path):
    box = region((1.5, 2.5), (7.5, 2.5), (7.5, 8.5), (1.5, 8.5))
    save(tmp_path / "Tissue Images" / "TCGA-A.tif", picture(0))
    annotations(tmp_path / "Annotations" / "TCGA-A.xml", box)
    save(tmp_path / "TCGA-B.png", picture(1))
    annotations(tmp_path / "TCGA-B.xml", box)
    annotated = segmentation_folders.read(tmp_path, "monuseg").annotated
    assert len(annotated) == 2 and all((a.instances == 1).sum() == 36 for a in annotated)


def test_one_damaged_file_among_many_is_fatal_or_left_out_and_named(tmp_path):
    for index in range(5):
        path = save(tmp_path / "images" / f"{index}.png", picture(index))
        save(tmp_path / "masks" / f"{index}.png", blocks())
        if index == 3:
            path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"3\.png is no picture that can be read") as raised:
        segmentation_folders.read(tmp_path)
    assert "\n" not in str(raised.value)
    reading = segmentation_folders.read(tmp_path, damaged="skip")
    assert len(reading.annotated) == 4
    assert reading.skipped == (str(raised.value),)
    for index in range(5):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no pair that can be read"):
        segmentation_folders.read(tmp_path, damaged="skip")


def test_what_a_folder_lacks_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="needs to be a folder"):
        segmentation_folders.read(tmp_path / "nowhere")
    for layout, message in (
        ("folders", "needs folders images/ and masks/, or x/ and y/"),
        ("tnbc", "needs folders Slide_01, GT_01"),
        ("monuseg", "got no image"),
    ):
        with pytest.raises(ValueError, match=message):
            segmentation_folders.read(tmp_path, layout)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="needs at least one picture"):
        segmentation_folders.read(tmp_path)
    save(tmp_path / "images" / "a.png", picture())
    with pytest.raises(ValueError, match=r"a\.png needs an annotation 'a' in .*masks; got none"):
        segmentation_folders.read(tmp_path)
    save(tmp_path / "masks" / "a.png", blocks())
    save(tmp_path / "masks" / "a.tif", blocks())
    with pytest.raises(ValueError, match="one annotation of a name; got two of 'a'"):
        segmentation_folders.read(tmp_path)
    with pytest.raises(ValueError, match="unknown layout 'tnbk': did you mean 'tnbc'"):
        segmentation_folders.read(tmp_path, "tnbk")


def test_a_mask_of_another_size_is_one_line(tmp_path):
    save(tmp_path / "images" / "a.png", picture())
    save(tmp_path / "masks" / "a.png", blocks((12, 11)))
    with pytest.raises(ValueError, match="the size of its image, 12 x 10; got 12 x 11"):
        segmentation_folders.read(tmp_path)


def wide_png(path):
    """A PNG of 16-bit colours, which Pillow cannot write but reads, dropping the low bytes."""
    chunk = lambda name, data: (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress(2 * (b"\x00" + bytes(range(12))))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_images_that_would_lose_something_are_one_line(tmp_path):
    transparent = Image.fromarray(picture()).convert("RGBA")
    transparent.putpixel((0, 0), (1, 2, 3, 100))
    pages = [Image.fromarray(picture(i)) for i in range(2)]
    cases = {
        "grey of 16 bits": save(tmp_path / "a.png", np.full((4, 4), 4000, np.uint16)),
        "colours of 16 bits": wide_png(tmp_path / "b.png"),
        "floats": save(tmp_path / "c.tif", np.ones((4, 4), np.float32)),
        "transparent": save(tmp_path / "d.png", transparent),
        "pages": save(tmp_path / "e.tif", pages[0], save_all=True, append_images=pages[1:]),
    }
    messages = ("mode I;16", "8 bits per channel; got 16", "mode F", "opaque", "got 2 pages")
    for path, message in zip(cases.values(), messages, strict=True):
        with pytest.raises(ValueError, match=message) as raised:
            picture_files.load_image(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_grey_palette_and_opaque_images_are_what_they_look_like(tmp_path):
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    for name, image in {
        "grey": Image.fromarray(grey),
        "opaque": Image.fromarray(expected).convert("RGBA"),
        "palette": Image.fromarray(grey).convert("P"),
    }.items():
        path = save(tmp_path / f"{name}.png", image)
        np.testing.assert_array_equal(picture_files.load_image(path), expected)


def test_masks_of_two_levels_are_read_however_they_are_stored(tmp_path):
    mask = blocks()
    palette = Image.fromarray((mask // 255).astype(np.uint8)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # Number 1 is black: it looks inverted.
    stored = {
        "levels.png": mask, "one.png": mask // 255, "bits.png": mask > 0, "colour.png":
        np.repeat(mask[..., None], 3, axis=-1), "wide.png": mask.astype(np.uint16) * 257,
    }  # fmt: skip
    for name, array in stored.items():
        found = picture_files.load_mask(save(tmp_path / name, array))
        np.testing.assert_array_equal(found > 0, mask > 0)
        assert found.max() == 2
    found = picture_files.load_mask(save(tmp_path / "palette.png", palette))
    np.testing.assert_array_equal(found > 0, mask == 0)
    smooth = np.kron(mask, np.ones((8, 8), np.uint8))
    found = picture_files.load_mask(save(tmp_path / "lossy.jpg", smooth, quality=75))
    np.testing.assert_array_equal(found > 0, smooth > 0)
    empty = save(tmp_path / "empty.jpg", np.zeros((16, 16), np.uint8))
    assert not picture_files.load_mask(empty).any()
    assert not picture_files.load_mask(save(tmp_path / "none.png", 0 * mask)).any()


def test_masks_that_are_none_are_one_line(tmp_path):
    greys, coloured = blocks(), picture()
    greys[0, 0] = 7
    gradient = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    for path, message in (
        (save(tmp_path / "a.png", greys), r'got 3: 0, 7, 255. .* with masks="instances"'),
        (save(tmp_path / "b.png", blocks() // 2 + 1), "two levels, 0 and one other"),
        (save(tmp_path / "c.png", coloured), "grey levels to be a mask; got colours"),
        (save(tmp_path / "d.jpg", gradient), "% of its pixels are grey"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            picture_files.load_mask(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_numbered_instances_are_read_from_8_and_16_bits(tmp_path):
    numbers = np.zeros((12, 10), np.uint16)
    numbers[:3], numbers[3:5], numbers[8:] = 5, 300, 65535
    found = picture_files.load_instances(save(tmp_path / "a.png", numbers))
    np.testing.assert_array_equal(found, np.searchsorted([0, 5, 300, 65535], numbers))
    save(tmp_path / "r" / "images" / "a.png", picture())
    save(tmp_path / "r" / "masks" / "a.png", numbers)
    (annotated,) = segmentation_folders.read(tmp_path / "r", masks="instances").annotated
    assert annotated.instances.max() == 3


def test_damaged_polygons_are_one_line(tmp_path):
    broken = tmp_path / "a.xml"
    broken.write_text("<Annotations><Region>")
    missing = annotations(tmp_path / "b.xml", '<Region><Vertex X="1"/></Region>')
    words = annotations(tmp_path / "c.xml", region(("one", 2), (3, 4), (5, 6)))
    endless = annotations(tmp_path / "d.xml", region(("inf", 2), (3, 4), (5, 6)))
    for path, message in (
        (broken, "no XML file of polygons"), (missing, "no XML file of polygons"),
        (words, "no XML file of polygons"), (endless, "finite vertices"),
        (annotations(tmp_path / "e.xml"), "at least one Region"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            polygons.load_polygons(path, (9, 9))
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_sources_without_images_or_with_small_ones_are_one_line():
    with pytest.raises(ValueError, match="at least one annotated image"):
        segmentation_source([], 2, side=8)
    with pytest.raises(ValueError, match="needs at least 64 x 64 pixels; got 32 x 32"):
        segmentation_source(generated(1, 32, 0), 2, side=64)
    with pytest.raises(ValueError, match="nuclei needs num >= 1"):
        nuclei(0, 32, 0)
