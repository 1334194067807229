# SPDX-License-Identifier: Apache-2.0
"""Pictures larger than a strip are read, separated and written as smaller ones are, in parts."""

import io
import pathlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from scorejax.data import large_pictures, png_strips
from scorejax.data.nuclei import nuclei
from scorejax.data.picture_files import load_image
from scorejax.evaluate import bands, segmentation, segmentation_pictures, segmented_folder
from scorejax.files import scratch

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (23, 17, 3), np.uint8)
# Smooth, so that Pillow's encoder chooses other filters than for noise.
WAVES = (127 + 120 * np.sin(np.arange(23)[:, None] / 5 + np.arange(17) / 7)).astype(np.uint8)
PREDICTOR = {"compression": "tiff_deflate", "tiffinfo": {317: 2}}


@pytest.fixture
def small_strips(monkeypatch):
    """Strips of three rows of the pictures here, and the last one of two."""
    monkeypatch.setattr(large_pictures, "STRIP_PIXELS", 3 * 17 + 5)


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def transparent(levels):
    """Some palette entries are transparent, and no pixel has one of them."""
    picture = Image.fromarray(levels).quantize(16)
    picture.info["transparency"] = bytes([255] * 16 + [0])
    return picture


PICTURES = {
    "noise.png": (Image.fromarray(NOISE), {}),
    "waves.png": (Image.fromarray(WAVES), {}),
    "palette.png": (Image.fromarray(NOISE).quantize(16), {}),
    "opaque_palette.png": (transparent(NOISE), {}),
    "opaque.png": (Image.fromarray(NOISE).convert("RGBA"), {}),
    "grey_alpha.png": (Image.fromarray(WAVES).convert("LA"), {}),
    "bits.png": (Image.fromarray(WAVES > 127), {}),
    "turned.png": (Image.fromarray(NOISE), {"exif": orientation(6)}),
    "waves.jpg": (Image.fromarray(WAVES), {}),
    "turned.jpg": (Image.fromarray(NOISE), {"exif": orientation(8)}),
    "plain.tif": (Image.fromarray(NOISE), {}),
    "grey.tif": (Image.fromarray(WAVES), {"compression": "tiff_adobe_deflate"}),
    "predicted.tif": (Image.fromarray(NOISE), PREDICTOR),
    "lzw.tif": (Image.fromarray(NOISE), {"compression": "tiff_lzw"}),
    "palette.tif": (Image.fromarray(NOISE).quantize(16), {}),
    "turned.tif": (Image.fromarray(WAVES), {"exif": orientation(3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_strips_have_the_pixels_of_the_whole(name, tmp_path, monkeypatch):
    picture, options = PICTURES[name]
    picture.save(tmp_path / name, **options)
    whole = load_image(tmp_path / name)
    monkeypatch.setattr(large_pictures, "STRIP_PIXELS", 3 * 17 + 5)
    np.testing.assert_array_equal(load_image(tmp_path / name), whole)


@pytest.mark.parametrize("name", ["noise.png", "plain.tif", "waves.jpg"])
def test_the_limit_is_that_of_the_caller_and_pillows_is_left_alone(name, tmp_path, monkeypatch):
    picture, options = PICTURES[name]
    picture.save(tmp_path / name, **options)
    # Pillow would warn of more than 100 pixels, and refuse more than 200; the picture has 391.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(tmp_path / name).shape == (23, 17, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    line = rf"{name} has 17 x 23 pixels, 0 million; at most max_pixels=390 are read\."
    with pytest.raises(ValueError, match=line):
        load_image(tmp_path / name, max_pixels=390)


def test_a_damaged_picture_is_named_whatever_strip_is_damaged(tmp_path, small_strips):
    path = tmp_path / "x.png"
    Image.fromarray(NOISE).save(path)
    data = path.read_bytes()
    for damaged in (
        data[:-40],  # Cut within the pixels.
        data[:200] + bytes([data[200] ^ 1]) + data[201:],
        data.replace(b"IDAT", b"iDAT"),
        data[:10],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.png is not a readable picture: \S"):
            load_image(path)


def test_a_transparent_strip_is_refused(tmp_path, small_strips):
    pixels = np.dstack([NOISE, np.full(WAVES.shape, 255, np.uint8)])
    pixels[20, 3, 3] = 254
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="needs opaque pixels"):
        load_image(tmp_path / "x.png")


def test_notes_between_the_pixels_of_a_png_are_passed_over(tmp_path, small_strips):
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 1000, zip=True)
    Image.fromarray(NOISE).save(tmp_path / "x.png", pnginfo=notes)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), NOISE)


@pytest.mark.parametrize("pixels", [NOISE, WAVES, RNG.integers(0, 2**16, (23, 17), np.uint16)])
def test_a_png_written_in_strips_has_the_pixels(pixels):
    for num_rows in (1, 3, 23, 99):
        file = io.BytesIO()
        png_strips.write_strips(file, pixels, num_rows, pixels.dtype)
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)


def test_scratch_is_zero_on_disk_and_in_memory():
    for in_memory in (0, 2**20):
        array = scratch((3, 5), np.float32, in_memory=in_memory)
        assert type(array) is np.ndarray and array.shape == (3, 5) and not array.any()
        array[1] = 2
        assert array.sum() == 10
    with pytest.raises(OSError):
        scratch((2**62,), np.uint8)


def partition(instances):
    """First pixel of each pixel's instance, which does not depend on how they are numbered."""
    _, first, inverse = np.unique(instances, return_index=True, return_inverse=True)
    return first[inverse].reshape(instances.shape) * (instances > 0)


def test_bands_separate_objects_as_the_whole_mask_does(monkeypatch):
    _, instances = nuclei(5, 96, seed=0)
    masks = np.concatenate(instances) > 0, RNG.random((200, 32)) < 0.45, np.zeros((480, 9), bool)
    for mask in masks:
        expected = segmentation.separate(mask)
        # Bands of 69 rows, which no clump here has, and the margin.
        monkeypatch.setattr(bands, "PIXELS", 2 * (69 + bands.MARGIN) * mask.shape[1])
        found = segmentation.separate(mask)
        assert len(list(bands.bands(mask))) == (-(-len(mask) // 69) if mask.any() else 0)
        monkeypatch.undo()
        np.testing.assert_array_equal(partition(found), partition(expected))
        assert found.max() == expected.max() == len(np.unique(found)) - 1


def test_a_region_larger_than_a_band_is_cut_and_none_is_lost(monkeypatch):
    monkeypatch.setattr(bands, "PIXELS", 2**13)
    for band in bands.bands(np.ones((300, 96), bool)):
        assert band.regions.size <= 2**13
    mask = np.ones((300, 96), bool)
    mask[::7, 5:] = False
    found = segmentation.separate(mask)
    np.testing.assert_array_equal(found > 0, mask)


def test_what_is_drawn_and_written_in_strips_is_the_same(tmp_path, monkeypatch):
    image, instances = (part[0] for part in nuclei(1, 64, seed=0))
    segmented_folder.save(tmp_path / "whole", image, instances)
    edges = segmentation_pictures.outlines(instances)
    monkeypatch.setattr(large_pictures, "STRIP_PIXELS", 5 * 64)
    np.testing.assert_array_equal(segmentation_pictures.outlines(instances), edges)
    segmented_folder.save(tmp_path / "strips", image, instances)
    for kind in ("mask", "overlay", "instances"):
        one, other = (Image.open(tmp_path / f"{stem}_{kind}.png") for stem in ("whole", "strips"))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


PROGRAM = """
import pathlib, resource, sys, types
import numpy as np
from PIL import Image
folder, most = pathlib.Path(sys.argv[1]), int(sys.argv[2])
large = Image.new("L", (13_400, 13_400))
for x in range(100, 13_400, 100):
    large.paste(200, (x, x, x + 31, x + 31))
large.save(folder / "slide.png")
del large
from scorejax.evaluate import segmented_folder, segmentation, sliding_window
network = lambda tiles: tiles[..., :1]
def segment(variables, image):
    p = sliding_window.sliding_window(network, image)[..., 0]
    instances = segmentation.separate(p > 0.5)
    return types.SimpleNamespace(probability=p, instances=instances, classes=None)
# Memory that is not of files: what a computer needs to have.
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
pictures = segmented_folder.readable(folder)
segmented_folder.segment_pictures(segment, {}, pictures, folder / "out")
"""


@pytest.mark.slow
def test_a_picture_of_180_million_pixels_is_segmented_in_two_gigabytes(tmp_path):
    # Pillow refuses it. The limit is on what the process asks for, 0.84 GB of which it uses.
    argv = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path), str(2 * 2**30)]
    root = pathlib.Path(__file__).resolve().parent.parent
    subprocess.run(argv, check=True, cwd=root)
    with large_pictures.open_picture(tmp_path / "out" / "slide_instances.png") as file:
        assert file.size == (13_400, 13_400)
        assert file.getextrema()[1] == 133  # as many as squares were drawn
