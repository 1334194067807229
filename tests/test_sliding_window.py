# SPDX-License-Identifier: Apache-2.0
"""Tiles give what the whole image gives; where they cannot, no seam shows; memory is bounded."""

import functools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from scorejax.evaluate.sliding_window import sliding_window, tile_weights
from scorejax.train import parallel

RADIUS = 4
KERNEL = np.random.default_rng(0).normal(size=(2 * RADIUS + 1, 2 * RADIUS + 1))


def convolution(images):
    """A 9 x 9 convolution over each channel, zeros outside, as a network pads."""
    planes = [
        [ndimage.correlate(plane, KERNEL, mode="constant") for plane in np.moveaxis(image, -1, 0)]
        for image in np.asarray(images, np.float64)
    ]
    return np.moveaxis(np.array(planes), 1, -1)


def pooled(images):
    """2 x 2 means, spread out again: what depends on where tiles begin."""
    b, h, w, c = images.shape
    means = images.reshape(b, h // 4, 4, w // 4, 4, c).mean(axis=(2, 4))
    return means.repeat(4, axis=1).repeat(4, axis=2)


def picture(height, width, channels=1, seed=1):
    return np.random.default_rng(seed).random((height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("shape", [(32, 32), (96, 64), (100, 71), (33, 200)])
def test_tiles_give_a_convolution_of_the_whole_image(shape):
    image = picture(*shape, channels=2)
    tiled = sliding_window(
        convolution, image, tile=32, overlap=12, margin=RADIUS, multiple=4, batch_size=3
    )
    whole = convolution(image[None])[0]
    assert tiled.shape == whole.shape and tiled.dtype == np.float32
    # Mirrored pixels stand below and to the right where 4 does not divide a side; zeros in `whole`.
    inside = [slice(0, side if side % 4 == 0 else side - RADIUS) for side in shape]
    # Sums of 81 terms of size 1 in double, rounded to single; weights that add to 1 within 2 ulp.
    np.testing.assert_allclose(tiled[*inside], whole[*inside], atol=1e-5)


def test_tiles_begin_where_the_pooling_windows_of_the_whole_image_do():
    image = picture(104, 88)
    # An overlap of 13 would put tiles at odd places; they are moved to multiples of 4.
    tiled = sliding_window(pooled, image, tile=32, overlap=13, margin=0, multiple=4)
    np.testing.assert_allclose(tiled, pooled(image[None])[0], atol=1e-6)


@pytest.mark.parametrize("length", [32, 36, 64, 100, 132])
@pytest.mark.parametrize(("step", "margin"), [(20, 0), (20, 5), (8, 3), (28, 1)])
def test_weights_of_tiles_add_up_to_one_and_vanish_at_inner_edges(length, step, margin):
    weights = tile_weights(length, 32, step, margin, 4)
    total = np.zeros(length)
    for start, weight in weights.items():
        total[start : start + 32] += weight
        assert (weight >= 0).all() and len(weight) == 32
        assert start == 0 or (weight[:margin] == 0).all()
        assert start == length - 32 or (weight[32 - margin :] == 0).all()
    np.testing.assert_allclose(total, 1, atol=3e-7)  # A few roundings to single precision.


@pytest.mark.parametrize(
    ("tile", "overlap", "margin", "multiple"),
    [(512, 128, 32, 32), (256, 96, 16, 32), (128, 65, 30, 8), (64, 40, 0, 16)],
)
def test_the_step_that_tiles_add_has_its_bound_at_every_length(tile, overlap, margin, multiple):
    # With answers in [0, delta] the blend moves by at most delta times all that weights rise by or,
    # since they add up to 1, half of all that they move by.
    step = (tile - overlap) // multiple * multiple
    for length in range(tile, 4101, multiple):
        weights = tile_weights(length, tile, step, margin, multiple)
        starts = sorted(weights)
        assert starts[0] == 0 and starts[-1] == length - tile
        assert len(starts) == 1 + -(-(length - tile) // step)
        assert max(np.diff(starts), default=0) <= step and not np.any(np.mod(starts, multiple))
        moves, total, spread = np.zeros(length - 1), np.zeros(length), np.zeros(length)
        for start, weight in weights.items():
            spread[:] = 0
            spread[start : start + tile] = weight
            moves += np.abs(np.diff(spread)) / 2
            total += spread
        # Weights are single: a few roundings of numbers up to 1.
        assert moves.max() <= 1 / (overlap - 2 * margin) + 2e-7, length
        np.testing.assert_allclose(total, 1, atol=3e-7)


def test_no_seam_shows_where_tiles_disagree():
    """Each tile answers with a constant of its own, in [0, 1]: the worst that it could do."""
    rng = np.random.default_rng(0)

    def disagreeing(images):
        return np.ones_like(images) * rng.random((len(images), 1, 1, 1))

    image, ramp = np.zeros((200, 232, 1), np.float32), 40 - 2 * 8
    tiled = sliding_window(disagreeing, image, tile=80, overlap=40, margin=8, multiple=8)[..., 0]
    steps = max(np.abs(np.diff(tiled, axis=axis)).max() for axis in (0, 1))
    # The blend moves from one tile's constant to the next over `ramp` pixels, so by 1 / ramp each.
    assert 0.3 / ramp < steps <= 1 / ramp + 1e-6
    assert np.ptp(tiled) > 0.3


def test_without_fading_the_seam_would_show():
    """The test above can fail: with next to no overlap left the same tiles leave a step."""
    rng = np.random.default_rng(0)
    answer = lambda images: np.ones_like(images) * rng.random((len(images), 1, 1, 1))
    image = np.zeros((200, 232, 1), np.float32)
    tiled = sliding_window(answer, image, tile=80, overlap=40, margin=19, multiple=8)[..., 0]
    assert max(np.abs(np.diff(tiled, axis=axis)).max() for axis in (0, 1)) > 0.2


def test_an_image_smaller_than_a_tile_is_mirrored_and_cut_back():
    image = picture(13, 21, channels=3)
    seen = []

    def keep(images):
        seen.append(images)
        return images[..., :1]

    result = sliding_window(keep, image, tile=64, overlap=32, margin=8, multiple=32, batch_size=2)
    np.testing.assert_array_equal(result, image[..., :1])
    (batch,) = seen
    assert batch.shape == (2, 64, 64, 3)
    expected = np.pad(image, ((0, 51), (0, 43), (0, 0)), mode="symmetric")
    np.testing.assert_array_equal(batch[0], expected)


def test_levels_are_mapped_to_the_unit_interval():
    image = np.array([[[0], [51], [255]]], np.uint8)
    result = sliding_window(lambda x: x, image, tile=4, overlap=2, margin=0, multiple=1)
    np.testing.assert_allclose(result[0, :, 0], [0, 0.2, 1], atol=1e-7)


def test_on_all_devices_a_jitted_network_is_traced_once():
    kernel = jnp.asarray(KERNEL, jnp.float32)[..., None, None]
    traces = []

    def network(weights, images):
        traces.append(images.shape)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, weights, (1, 1), "SAME", dimension_numbers=numbers,
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip

    predict = functools.partial(parallel.map_over_devices(network), kernel)
    image = picture(72, 100)
    tiled = sliding_window(
        predict, image, tile=32, overlap=12, margin=RADIUS, multiple=4, batch_size=4
    )
    # Sums of 81 terms of size 1 in single precision.
    np.testing.assert_allclose(tiled, convolution(image[None])[0], atol=2e-5)
    assert traces == [(4 // jax.local_device_count(), 32, 32, 1)]


def test_a_large_image_needs_no_more_memory_than_is_said():
    height, width, tile, batch_size, channels, classes = 4000, 4000, 512, 2, 3, 1
    image = np.zeros((height, width, channels), np.uint8)
    tracemalloc.start()
    result = sliding_window(lambda x: x[..., :1], image, tile=tile, batch_size=batch_size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    both = channels + classes
    said = 4 * classes * height * width + 4 * tile**2 * (batch_size * both + both)
    # A megabyte for all that is small: weights, indices of pixels, the bytes of a tile.
    allowed = said + 2**20
    assert result.shape == (height, width, 1) and peak < allowed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, "tile a multiple of the network's reduction 32"),
        ({"overlap": 64, "margin": 32}, "2 margin < overlap"),
        ({"overlap": 512}, "overlap <= tile - 32"),
        ({"margin": -1}, "0 <= 2 margin"),
        ({"batch_size": 0}, "batch_size >= 1"),
    ],
)
def test_sizes_that_do_not_fit_together_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        sliding_window(lambda x: x, np.zeros((8, 8, 1), np.uint8), **options)
    assert "\n" not in str(raised.value)


def test_what_is_no_image_or_no_answer_is_one_line():
    with pytest.raises(ValueError, match=r"needs an image \(h, w, c\); got \(8, 8\)"):
        sliding_window(lambda x: x, np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="predict needs to return"):
        sliding_window(
            lambda x: x[:, ::2], np.zeros((8, 8, 1), np.uint8), tile=64, overlap=32, margin=0
        )
