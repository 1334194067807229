# SPDX-License-Identifier: Apache-2.0
"""Points and queries for the benchmarks of Bregman neighbours: real vectors, and the paper's.

Of photographs, points come from the upper seven eighths and queries from the lowest eighth, every
row from a place of its own: no row occurs twice but where the photographs repeat themselves.
"""

import importlib.resources
import io
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from scorejax.data.photographs import PHOTOGRAPHS

PATCH, LINE = 8, 256
PIECE = 2**15

Sets = tuple[np.ndarray, np.ndarray]


def patches(rng: np.random.Generator, num_points: int, num_queries: int) -> Sets:
    """8 x 8 x 3 patches of seven photographs: 192 intensities in [1, 256]."""

    def windows(picture):
        return sliding_window_view(picture, (PATCH, PATCH), axis=(0, 1)).reshape(-1, 192)

    return _of_photographs(rng, (num_points, num_queries), windows, lambda cut: cut + 1.0)


def spectra(rng: np.random.Generator, num_points: int, num_queries: int) -> Sets:
    """Power spectra (128 frequencies) of 256 pixels of a line, as of audio samples."""

    def windows(picture):
        lines = np.moveaxis(picture, 2, 0).reshape(-1, picture.shape[1])
        return sliding_window_view(lines, LINE, axis=1).reshape(-1, LINE)

    def power(lines):
        windowed = (lines - lines.mean(axis=1, keepdims=True)) * np.hanning(LINE)
        return np.abs(np.fft.rfft(windowed, axis=1)[:, 1:]) ** 2 + 1

    return _of_photographs(rng, (num_points, num_queries), windows, power)


def normal(
    rng: np.random.Generator, num_points: int, num_queries: int, *, dimension: int = 200
) -> Sets:
    """The paper's Normal: independent N(0, 1)."""
    draw = lambda num: rng.standard_normal((num, dimension), dtype=np.float32)
    return draw(num_points), draw(num_queries)


def uniform(
    rng: np.random.Generator, num_points: int, num_queries: int, *, dimension: int = 200
) -> Sets:
    """The paper's Uniform: independent, here in [1, 100] so that all are positive."""
    draw = lambda num: 1 + 99 * rng.random((num, dimension), dtype=np.float32)
    return draw(num_points), draw(num_queries)


SETS: dict[str, tuple[Callable[..., Sets], str]] = {
    "patches": (patches, "generalized_kl"),
    "spectra": (spectra, "itakura_saito"),
    "normal": (normal, "exponential"),
    "uniform": (uniform, "itakura_saito"),
}
"""Each with its divergence."""


def _of_photographs(rng, counts, windows, make) -> Sets:
    above, below = [], []
    for package, file in PHOTOGRAPHS:
        data = (importlib.resources.files(package) / file).read_bytes()
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        last = len(picture) * 7 // 8
        above.append(windows(picture[:last]))
        below.append(windows(picture[last:]))
    return tuple(_draw(rng, *some, make) for some in zip((above, below), counts, strict=True))


def _draw(rng, windows: list[np.ndarray], num: int, make) -> np.ndarray:
    """`num` different windows in random order, converted to rows a piece at a time."""
    first = np.cumsum([0, *map(len, windows)])
    chosen = np.sort(rng.choice(first[-1], num, replace=False))
    rows = []
    for own, start, stop in zip(windows, first[:-1], first[1:], strict=True):
        numbers = chosen[(chosen >= start) & (chosen < stop)] - start
        for piece in range(0, len(numbers), PIECE):
            rows.append(make(own[numbers[piece : piece + PIECE]]).astype(np.float32))
    return rng.permutation(np.concatenate(rows))
