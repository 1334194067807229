# SPDX-License-Identifier: Apache-2.0
"""Pictures show the pixels that they were given, and say so when they cannot."""

import threading

import numpy as np
import pytest
from PIL import Image

from scorejax.evaluate import pictures, reports

RNG = np.random.default_rng(0)


def test_grid_holds_every_image_exactly_once_in_reading_order():
    images = RNG.uniform(size=(5, 3, 4, 3)).astype(np.float32)
    grid = pictures.image_grid(images, num_columns=2, scale=3)
    gap = pictures.GAP
    assert grid.shape == (3 * (9 + gap) + gap, 2 * (12 + gap) + gap, 3)
    for i, image in enumerate(images):
        y, x = gap + (i // 2) * (9 + gap), gap + (i % 2) * (12 + gap)
        enlarged = np.kron((image * 255).round(), np.ones((3, 3, 1)))
        np.testing.assert_array_equal(grid[y : y + 9, x : x + 12], enlarged)
    assert (grid[-9 - gap :, -12 - gap :] == pictures.PAPER).all()  # the sixth place stays empty


def test_grid_clips_what_is_out_of_range_and_marks_what_is_not_finite():
    image = np.array([[-3.0, 0.5], [np.nan, 7.0]])[None, :, :, None]
    grid = pictures.image_grid(image, scale=1)[2:4, 2:4]
    np.testing.assert_array_equal(grid[0], [[0] * 3, [128] * 3])
    np.testing.assert_array_equal(grid[1], [pictures.NOT_FINITE, [255] * 3])


def test_rows_that_are_not_finite_are_counted_in_one_line():
    rows = {"image": np.zeros((5, 2, 2, 1), np.float32), "nfe": np.arange(5)}
    reports.require_finite(rows, "samples", "out")
    rows["image"][1, 0, 1], rows["image"][3, 1, 0] = np.nan, np.inf
    with pytest.raises(RuntimeError, match=r"^2 of 5 samples are not finite; all are in out\.npz"):
        reports.require_finite(rows, "samples", "out")


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert pictures.image_grid(np.zeros((1, 8, 8, 1))).shape == (100, 100, 3)
    assert pictures.image_grid(np.zeros((1, 64, 64, 3))).shape == (132, 132, 3)


def test_denoising_sequence_shows_both_ends_and_leaves_clean_frames_alone():
    start, end = 50 * RNG.normal(size=(2, 8, 8, 1)), RNG.uniform(size=(2, 8, 8, 1))
    weights = np.linspace(0, 1, 31)[:, None, None, None, None]
    picture = pictures.denoising_sequence((1 - weights) * start + weights * end, num_frames=4)
    clean = pictures.image_grid(end, num_columns=1)
    np.testing.assert_array_equal(picture[:, -100:], clean)
    first = picture[2:50, 2:50, 0]
    # The middle 98 % of 50 N(0, 1) spans about 233, so a noisy frame must not be black and white.
    assert np.mean((first == 0) | (first == 255)) < 0.1


def test_denoising_sequence_survives_a_chain_that_blew_up():
    trajectory = np.full((3, 2, 4, 4, 1), np.nan)
    trajectory[0] = 0.5
    picture = pictures.denoising_sequence(trajectory, scale=1)
    np.testing.assert_array_equal(picture[2, [2, 8]], [[128] * 3, pictures.NOT_FINITE])


def test_neighbours_stand_below_their_sample():
    samples, neighbours = RNG.uniform(size=(3, 4, 4, 1)), RNG.uniform(size=(3, 2, 4, 4, 1))
    picture = pictures.neighbours_picture(samples, neighbours, num_columns=2, scale=1)
    row = 4 + 3 * pictures.GAP

    def tile(block, column, line):
        y = 3 * pictures.GAP + line * row + block * (3 * row + 7 * pictures.GAP)
        x = 3 * pictures.GAP + column * row
        return picture[y : y + 4, x : x + 4, :1]

    for i in range(3):
        expected = [samples[i], *neighbours[i]]
        for line in range(3):
            np.testing.assert_array_equal(
                tile(i // 2, i % 2, line), (expected[line] * 255).round().astype(np.float32)
            )


def test_histogram_and_curves_draw_every_series_in_its_colour():
    histogram = pictures.histogram_picture(
        {"digits": RNG.normal(size=50), "noise": [5.0, 6.0, np.inf]}, xlabel="bits/dim"
    )
    curves = pictures.curve_picture(
        np.arange(30), {"train": RNG.normal(size=30), "test": [np.nan] * 15 + [0.0] * 15}
    )
    for picture in (histogram, curves):
        assert picture.dtype == np.uint8 and picture.shape == (480, 840, 3)
        for colour in pictures.COLOURS[:2]:
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
            assert (picture == rgb).all(axis=-1).sum() > 50
    assert not histogram.base and not curves.base  # nothing keeps matplotlib's canvas alive


def test_running_mean_passes_over_gaps():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    np.testing.assert_allclose(pictures._running_mean(values, 3), [1.5, 1.5, 3.0, 4.5, 4.5])


def test_matplotlib_state_of_the_caller_is_untouched():
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    worker = threading.Thread(target=pictures.curve_picture, args=([0, 1], {"loss": [1.0, 0.5]}))
    worker.start()
    worker.join()
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend


def test_png_returns_the_same_pixels_and_leaves_nothing_beside_it(tmp_path):
    picture = RNG.integers(0, 256, size=(7, 9, 3), dtype=np.uint8)
    pictures.save_png(tmp_path / "deep" / "a.png", picture)
    pictures.save_png(tmp_path / "deep" / "a.png", picture[::-1])
    with Image.open(tmp_path / "deep" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), picture[::-1])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_a_failed_write_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    pictures.save_png(path, np.zeros((2, 2, 3), np.uint8))
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        pictures.save_png(path, np.ones((2, 2, 3), np.uint8))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pictures.image_grid(np.zeros((8, 8, 1))), r"got shape \(8, 8, 1\)"),
        (lambda: pictures.image_grid(np.zeros((2, 8, 8, 2))), "1 or 3"),
        (lambda: pictures.image_grid(np.zeros((0, 8, 8, 1))), "at least one"),
        (lambda: pictures.image_grid(np.zeros((1, 8, 8, 1)), scale=0), "scale >= 1; got 0"),
        (
            lambda: pictures.image_grid(np.zeros((1, 8, 8, 1)), num_columns=0),
            "num_columns >= 1; got 0",
        ),
        (lambda: pictures.denoising_sequence(np.zeros((8, 8, 8, 1))), "steps, n, h, w, c"),
        (
            lambda: pictures.neighbours_picture(np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8, 1))),
            "n, k, h, w, c",
        ),
        (lambda: pictures.curve_picture([1, 2], {"loss": [1.0]}), "'loss'"),
        (lambda: pictures.histogram_picture({"a": [np.nan]}, xlabel=""), "at least one finite"),
        (lambda: pictures.save_png("x.png", np.zeros((2, 2, 3))), "image_grid"),
    ],
)
def test_wrong_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
