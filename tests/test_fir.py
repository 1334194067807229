# SPDX-License-Identifier: Apache-2.0
"""Resampling against official numbers, brute force and what a filter must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from scorejax.models import fir
from scorejax.models.convolution import conv

FILTERS = {"1331": (1, 3, 3, 1), "11": (1, 1), "121": (1, 2, 1), "none": (1, 1)}
RAW = {  # name of the number: up, down, pad
    "raw0_u1_d1_p1_1": (1, 1, (1, 1)),
    "raw1_u2_d1_p2_1": (2, 1, (2, 1)),
    "raw2_u1_d2_p1_2": (1, 2, (1, 2)),
    "raw3_u3_d2_p4_0": (3, 2, (4, 0)),
    "raw4_u2_d2_p-1_3": (2, 2, (-1, 3)),
}


def resampled(file, name, dtype):
    """What the official code calls by this name, by ours."""
    x = jnp.asarray(np.moveaxis(file["in/x"], 1, -1), dtype)
    weight = jnp.asarray(file["in/w"].transpose(2, 3, 1, 0), dtype)
    if name in RAW:
        up, down, pad = RAW[name]
        return fir.upfirdn2d(x, file["in/kernel"], up=(up, up), down=(down, down), pad=(pad, pad))
    kind, taps, *change = name.split("_")
    if kind == "naive":
        return {"up": fir.nearest_upsample, "down": fir.mean_downsample}[taps](x)
    if kind == "convdown":
        return fir.fir_conv_downsample(x, weight, FILTERS[taps])
    resample = {"up": fir.fir_upsample, "down": fir.fir_downsample}[kind]
    options = {"gain2": {"gain": 2.0}, "x3": {"factor": 3}}
    return resample(x, FILTERS[taps], **(options[change[0]] if change else {}))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_official_numbers(golden, dtype):
    file = golden("d_upfirdn")
    names = [key.removeprefix("out/") for key in file if key.startswith("out/")]
    assert len(names) == 21
    with jax.enable_x64(dtype == "float64"):
        values = jax.jit(lambda: {name: resampled(file, name, dtype) for name in names})()
        for name in names:
            expected = np.moveaxis(file[f"out64/{name}"], 1, -1)
            # Ten times the official rounding error; in double 1e-8 of the largest entry.
            tolerance = np.moveaxis(file[f"tol/{name}"], 1, -1)
            if dtype == "float64":
                tolerance = 1e-8 * np.abs(expected).max(axis=(1, 2, 3), keepdims=True)
            error = np.abs(np.asarray(values[name], np.float64) - expected)
            assert np.all(error <= tolerance), name


def test_upfirdn2d_is_zero_insertion_convolution_and_decimation(x64):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))
    kernel = np.random.default_rng(0).normal(size=(3, 4))
    y = fir.upfirdn2d(x, kernel, up=(2, 3), down=(3, 2), pad=((1, 0), (2, 3)))
    spread = np.zeros((2, 10, 18, 3))
    spread[:, ::2, ::3] = x
    padded = np.pad(spread, ((0, 0), (1, 0), (2, 3), (0, 0)))
    full = scipy.signal.convolve(padded, kernel[None, :, :, None], mode="valid")
    np.testing.assert_allclose(y, full[:, ::3, ::2], atol=1e-14)


@pytest.mark.deep
@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 1), (1, 2, 3, 3, 2, 1)])
def test_fused_twins_are_a_convolution_and_a_resampling(x64, taps):
    # Filter and convolution commute where neither sees the border: 4 pixels from it for 6 taps.
    x = jax.random.normal(jax.random.key(0), (1, 24, 24, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
    small = fir.fir_conv_downsample(x, kernel, taps)
    expected = fir.fir_downsample(conv(x, kernel), taps)
    np.testing.assert_allclose(small[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], atol=1e-12)
    large = fir.fir_upsample_conv(x, kernel, taps)
    expected = conv(fir.fir_upsample(x, taps), kernel)
    assert large.shape == (1, 48, 48, 4)
    np.testing.assert_allclose(large[:, 6:-6, 6:-6], expected[:, 6:-6, 6:-6], atol=1e-12)


@pytest.mark.parametrize("factor", [2, 3])
def test_up_and_downsampling_are_transposes(x64, factor):
    # <down(x), y> = <x, up(y)> / factor^2 with the same symmetric filter.
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    y = jax.random.normal(jax.random.key(1), (2, 12 // factor, 12 // factor, 3))
    taps = (1, 3, 3, 1) if factor == 2 else (1, 2, 3, 2, 1)
    left = jnp.vdot(fir.fir_downsample(x, taps, factor=factor), y)
    right = jnp.vdot(x, fir.fir_upsample(y, taps, factor=factor)) / factor**2
    np.testing.assert_allclose(left, right, rtol=1e-12)


def test_a_constant_image_keeps_its_value(x64):
    x = jnp.full((1, 12, 12, 1), 0.7)
    up, down = fir.fir_upsample(x, (1, 3, 3, 1)), fir.fir_downsample(x, (1, 3, 3, 1))
    np.testing.assert_allclose(up[:, 2:-2, 2:-2], 0.7, rtol=1e-14)
    np.testing.assert_allclose(down[:, 1:-1, 1:-1], 0.7, rtol=1e-14)


def test_plain_downsampling_undoes_plain_upsampling():
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    np.testing.assert_array_equal(fir.mean_downsample(fir.nearest_upsample(x)), x)
