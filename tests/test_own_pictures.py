# SPDX-License-Identifier: Apache-2.0
"""Pictures of people: what cannot be used is said at once, what can is read as Pillow does it."""

import os

import jax
import numpy as np
import pytest
from PIL import Image

from launch import command
from scorejax.data import picture_files, shrunk_pictures
from scorejax.data.transforms import crop_then_shrink
from scorejax.data.view import ImageView

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
OPACITY = np.random.default_rng(1).integers(0, 256, (12, 10)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Pictures of every kind that people have, two of them damaged and one of 16 bits."""
    train, test, picture = tmp_path / "train", tmp_path / "test", Image.fromarray(PIXELS)
    train.mkdir()
    test.mkdir()
    picture.save(test / "z.png")
    (train / "text.png").write_text("no picture")
    picture.save(train / "cut.png")
    (train / "cut.png").write_bytes((train / "cut.png").read_bytes()[:80])
    Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(train / "deep.png")
    picture.save(train / "a.tif")
    picture.save(train / "b.webp", lossless=True)
    picture.convert("CMYK").save(train / "c.jpg", quality=95)
    Image.merge("RGBA", (*picture.split(), Image.fromarray(OPACITY))).save(train / "d.png")
    picture.quantize(8).save(train / "e.png")
    # As telephones do: a second frame beside the picture.
    picture.save(train / "f.jpg", "MPO", save_all=True, append_images=[picture.reduce(2)])
    for other in ("g.heic", "h.heic", "i.bmp"):
        (train / other).write_bytes(b"unread")
    return tmp_path


def view(folder, damaged="raise"):
    return ImageView("folder", 8, data_dir=str(folder), damaged=damaged)


def test_all_that_is_wrong_with_a_folder_is_one_line_with_the_count(folder):
    (folder / "test" / "gone.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^4 of 11 pictures cannot be used: ") as raised:
        view(folder).training_source(2)
    line = str(raised.value)
    assert "\n" not in line and line.endswith("on the other 7")
    for name in ("train/text.png", "train/cut.png", "train/deep.png", "test/gone.png"):
        assert str(folder / name) in line
    assert "--config.damaged=skip" in line and "16" in line


def test_damaged_pictures_are_left_out_and_all_else_is_counted(folder):
    Image.fromarray(PIXELS[:5, :5]).save(folder / "train" / "small.png")
    source = view(folder, "skip").training_source(2)
    assert source.num_examples == 7
    train, test = source.notes
    assert train.startswith(f"{folder}/train: 7 of 10 pictures are used; ")
    assert test == f"{folder}/test: 1 of 1 pictures are used"
    assert "1 of them transparent, laid over white" in train
    assert "1 of them converted from CMYK to RGB" in train
    assert "1 of them smaller than 8 pixels, enlarged" in train
    assert "not read, by suffix: 2 .heic, 1 .bmp" in train
    assert "3 left out: " in train and "text.png" in train
    assert len(view(folder, "skip").stored("train").image) == 7
    for name in (*"abcdef", "small"):
        next((folder / "train").glob(f"{name}.*")).unlink()
    with pytest.raises(ValueError, match=r"train has no picture that can be used: .*cut\.png"):
        view(folder, "skip").training_source(2)
    with pytest.raises(ValueError, match=r"way with damaged files 'skp': did you mean 'skip'"):
        view(folder, "skp")


def test_colours_are_those_that_the_formulas_give(folder):
    read = lambda name: picture_files.load_picture(folder / "train" / name)
    np.testing.assert_array_equal(read("a.tif").pixels, PIXELS)
    np.testing.assert_array_equal(read("b.webp").pixels, PIXELS)
    share = OPACITY[..., None] / 255
    # Pillow rounds in integers.
    np.testing.assert_allclose(read("d.png").pixels, share * PIXELS + (1 - share) * 255, atol=1)
    with Image.open(folder / "train" / "c.jpg") as stored:
        ink = np.asarray(stored).astype(int)
    complement = np.round((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255)
    np.testing.assert_allclose(read("c.jpg").pixels, complement, atol=1)
    palette = Image.fromarray(PIXELS).quantize(8).convert("RGB")
    np.testing.assert_array_equal(read("e.png").pixels, palette)
    assert read("f.jpg").pixels.shape == PIXELS.shape
    # A mask by such a file would be another, so that segmentation still refuses it.
    with pytest.raises(ValueError, match=r"d\.png needs opaque pixels"):
        picture_files.load_image(folder / "train" / "d.png")


def test_masks_of_webp_are_exact_or_refused(tmp_path):
    y, x = np.mgrid[:64, :64]
    inside = (y - 31) ** 2 + (x - 30) ** 2 < 23**2
    Image.fromarray(inside).convert("RGB").save(tmp_path / "exact.webp", lossless=True)
    Image.fromarray(inside).convert("RGB").save(tmp_path / "lossy.webp", quality=80)
    np.testing.assert_array_equal(picture_files.load_mask(tmp_path / "exact.webp"), inside)
    with pytest.raises(ValueError, match=r"lossy\.webp needs grey levels to be a mask"):
        picture_files.load_mask(tmp_path / "lossy.webp")
    # No file says whether it is the one or the other.
    with pytest.raises(ValueError, match="lossy: JPEG, WebP and smooth resizing"):
        picture_files.load_instances(tmp_path / "exact.webp")


def test_pictures_to_measure_are_read_alike_and_all_bad_ones_are_named(folder):
    with pytest.raises(ValueError, match=r"^3 of 9 pictures: .*cut\.png.*deep\.png.*text\.png"):
        ImageView("cifar10", 8).pictures(folder / "train")
    for name in ("cut.png", "deep.png", "text.png"):
        (folder / "train" / name).unlink()
    measured = ImageView("cifar10", 8).pictures(folder / "train")
    np.testing.assert_array_equal(measured, view(folder).stored("train").image)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Pictures of far more pixels than a model sees, and a list of the files that are decoded."""
    monkeypatch.setenv("SCOREJAX_CACHE_DIR", str(tmp_path / "cache"))
    decoded, read = [], shrunk_pictures.load_picture
    monkeypatch.setattr(
        shrunk_pictures, "load_picture", lambda path: decoded.append(path.name) or read(path)
    )
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.tile(PIXELS, (3, 3, 1))).save(tmp_path / split / "large.png")
    return tmp_path, decoded


def test_a_large_picture_is_decoded_once_and_its_copy_is_what_it_would_be(large):
    root, decoded = large
    expected = crop_then_shrink(np.tile(PIXELS, (3, 3, 1)), 8)
    for _ in range(2):  # the second time as in another run
        view(root).training_source(1)
        np.testing.assert_array_equal(view(root).stored("train").image[0], expected)
    assert decoded == ["large.png"] * 2  # one a split
    Image.fromarray(np.tile(PIXELS[::-1], (3, 3, 1))).save(root / "train" / "large.png")
    os.utime(root / "train" / "large.png", ns=(0, 0))
    view(root).training_source(1)
    assert len(decoded) == 3
    upside_down = crop_then_shrink(np.tile(PIXELS[::-1], (3, 3, 1)), 8)
    np.testing.assert_array_equal(view(root).stored("train").image[0], upside_down)
    assert len(decoded) == 3


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(large, monkeypatch):
    root, decoded = large
    view(root).training_source(1)
    for path in (root / "cache").rglob("*.*"):
        path.write_bytes(b"damaged")
    stored = view(root).stored("train").image
    view(root).training_source(1)
    monkeypatch.setenv("SCOREJAX_CACHE_DIR", str(root / "train" / "large.png"))
    np.testing.assert_array_equal(view(root).stored("train").image, stored)
    view(root).training_source(1)
    assert len(decoded) > 4


def test_a_batch_may_hold_one_picture(folder):
    source = view(folder, "skip").training_source(1)
    carry, seen = source.init(0, jax.random.key(0)), []
    for _ in range(6):
        carry, batch = source.next(carry, None, jax.random.key(0))
        seen.append(batch["image"].sum())
    images = view(folder, "skip").stored("train").image.astype(float)
    # An epoch; a sum of 192 numbers in single precision.
    sums = (2 * images / 255 - 1).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(sorted(seen), sorted(sums), rtol=1e-4)


def outcome(job, capfd):
    """Exit status and stderr of a command with this job."""
    with pytest.raises(SystemExit) as ended:
        command._main(lambda: job, [])
    return ended.value.code, capfd.readouterr().err


def test_a_picture_that_is_damaged_meanwhile_ends_the_command_with_one_line(folder, capfd):
    for name in ("text.png", "cut.png", "deep.png"):
        (folder / "train" / name).unlink()
    source = view(folder).training_source(6)
    for path in (folder / "train").iterdir():
        path.write_text("another")

    def job():
        source.next(source.init(0, jax.random.key(0)), None, jax.random.key(0))

    status, line = outcome(job, capfd)
    assert status == 1
    assert line.startswith(f"error: {folder}/train/") and "is not a readable picture" in line
    assert line.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="reshape"):
        command._main(lambda: lambda: np.zeros(3).reshape(2), [])
