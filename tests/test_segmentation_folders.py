# SPDX-License-Identifier: Apache-2.0
"""Stored images and masks are read exactly, or refused in one line that names the file."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from scorejax.data import picture_files, segmentation_folders
from tests.imagescope import annotations, region


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
    with pytest.raises(ValueError, match=r"3\.png is not a readable picture") as raised:
        segmentation_folders.read(tmp_path)
    assert "\n" not in str(raised.value)
    reading = segmentation_folders.read(tmp_path, damaged="skip")
    assert len(reading.annotated) == 4
    assert reading.skipped == (str(raised.value),)
    for index in range(5):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable pair"):
        segmentation_folders.read(tmp_path, damaged="skip")


def test_what_a_folder_lacks_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="needs to be a folder"):
        segmentation_folders.read(tmp_path / "nowhere")
    for layout, message in (
        ("folders", "needs folders images/ and masks/, or x/ and y/"),
        ("tnbc", "needs folders Slide_01, GT_01"),
        ("monuseg", "has no pictures"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            segmentation_folders.read(tmp_path, layout)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="images has no pictures"):
        segmentation_folders.read(tmp_path)
    save(tmp_path / "images" / "a.png", picture())
    with pytest.raises(ValueError, match=r"a\.png needs an annotation 'a' in .*masks; got none"):
        segmentation_folders.read(tmp_path)
    save(tmp_path / "masks" / "a.png", blocks())
    save(tmp_path / "masks" / "a.tif", blocks())
    with pytest.raises(ValueError, match="one annotation per name; got two of 'a'"):
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


@pytest.mark.parametrize("layout", ["folders", "monuseg", "tnbc"])
def test_two_images_of_one_stem_do_not_share_an_annotation(layout, tmp_path):
    image, truth = {
        "folders": ("images", "masks"), "monuseg": ("deep/images", "deep"),
        "tnbc": ("Slide_01", "GT_01"),
    }[layout]  # fmt: skip
    for suffix in (".png", ".tif"):
        save(tmp_path / image / f"a{suffix}", picture())
    if layout == "monuseg":
        annotations(tmp_path / truth / "a.xml", region((1.5, 2.5), (7.5, 2.5), (7.5, 8.5)))
    else:
        save(tmp_path / truth / "a.png", blocks())
    with pytest.raises(ValueError, match="needs one picture per name; got two of 'a'"):
        segmentation_folders.read(tmp_path, layout, damaged="skip")


def test_a_tiff_of_8_bits_is_read_wherever_its_directory_lies(tmp_path):
    # Of compressed TIFFs the decoder gets the directory's offset, in which a "16" says nothing.
    offsets = []
    for width in range(10, 60):
        pixels = picture(width, (10, width))
        path = save(tmp_path / f"{width}.tif", pixels, compression="tiff_deflate")
        with Image.open(path) as file:
            offsets.append(str(file.tile[0].args[2]))
        np.testing.assert_array_equal(picture_files.load_image(path), pixels)
    assert sum("16" in offset for offset in offsets) > 2


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", "<>")
def test_a_tiff_of_16_bit_colours_is_one_line(planes, compression, byteorder, tmp_path):
    path, pixels = tmp_path / "a.tif", picture().astype(np.uint16) * 257
    stored = np.moveaxis(pixels, -1, 0) if planes == "separate" else pixels
    options = {"photometric": "rgb", "planarconfig": planes, "compression": compression}
    tifffile.imwrite(path, stored, byteorder=byteorder, **options)
    with pytest.raises(ValueError, match="8 bits per channel; got 16"):
        picture_files.load_image(path)
    tifffile.imwrite(path, (stored // 257).astype(np.uint8), byteorder=byteorder, **options)
    np.testing.assert_array_equal(picture_files.load_image(path), picture())


def with_a_broken_page(path):
    """A TIFF with a second directory, of no entries: a page without width and height."""
    data = bytearray(save(path, picture()).read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * entries, len(data))
    path.write_bytes(data + bytes(6))
    return path


def test_a_damaged_tiff_is_one_line_or_left_out_whatever_pillow_raises(tmp_path):
    for index in range(3):
        save(tmp_path / "images" / f"{index}.tif", picture(index))
        save(tmp_path / "masks" / f"{index}.png", blocks())
    path = with_a_broken_page(tmp_path / "images" / "1.tif")
    with pytest.raises(ValueError, match="is not a readable picture: Missing dim") as raised:
        picture_files.load_image(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    reading = segmentation_folders.read(tmp_path, damaged="skip")
    assert len(reading.annotated) == 2 and reading.skipped == (str(raised.value),)


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
        (save(tmp_path / "d.jpg", gradient), "% of them are grey"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            picture_files.load_mask(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("part", [0.5, np.nan, np.inf, 3e9])
def test_a_mask_of_floats_needs_whole_levels(part, tmp_path):
    whole = blocks().astype(np.float32)
    found = picture_files.load_mask(save(tmp_path / "whole.tif", whole))
    np.testing.assert_array_equal(found > 0, whole > 0)
    assert picture_files.load_instances(tmp_path / "whole.tif").max() == 1
    path = save(tmp_path / "parts.tif", np.where(whole > 0, np.float32(part), np.float32(0)))
    for load in (picture_files.load_mask, picture_files.load_instances):
        with pytest.raises(ValueError, match="needs whole levels to be a mask; got") as raised:
            load(path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("level", [1, 20, 30])
def test_a_dark_jpeg_mask_is_not_taken_for_an_empty_one(level, tmp_path):
    dark = np.kron(blocks() // 255 * level, np.ones((8, 8), np.uint8)).astype(np.uint8)
    path = save(tmp_path / "dark.jpg", dark, quality=95)
    with pytest.raises(ValueError, match=r"a level above 32, or a single level, .* Save it as PNG"):
        picture_files.load_mask(path)


def test_numbered_instances_are_read_from_8_and_16_bits(tmp_path):
    numbers = np.zeros((12, 10), np.uint16)
    numbers[:3], numbers[3:5], numbers[8:] = 5, 300, 65535
    found = picture_files.load_instances(save(tmp_path / "a.png", numbers))
    np.testing.assert_array_equal(found, np.searchsorted([0, 5, 300, 65535], numbers))
    save(tmp_path / "r" / "images" / "a.png", picture())
    save(tmp_path / "r" / "masks" / "a.png", numbers)
    (annotated,) = segmentation_folders.read(tmp_path / "r", masks="instances").annotated
    assert annotated.instances.max() == 3
