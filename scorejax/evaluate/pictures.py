# SPDX-License-Identifier: Apache-2.0
"""Draws images and curves: every function returns uint8 (height, width, 3) for `save_png`.

Images are floats in [0, 1] of shape (n, h, w, 1 or 3). Values outside [0, 1] are clipped;
non-finite pixels are drawn in magenta, so that a broken sampler is visible. Matplotlib is used
without pyplot: no window opens and the caller's own plots are not affected.
"""

import math
import os
from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8

from scorejax.data.large_pictures import rows_of_strip
from scorejax.data.png_strips import write_strips
from scorejax.files import written_whole

Picture = UInt8[np.ndarray, "height width 3"]

COLOURS = ("#1f5fa8", "#d9662b", "#2f8f5b", "#8a4fa3", "#6b6b6b", "#c23b4a")
FRAME = (31, 95, 168)
NOT_FINITE = (255, 0, 255)
PAPER = 255
GAP = 2
TILE = 96
"""Least side, in pixels, to which images of a grid are enlarged."""


def image_grid(
    images: Float[ArrayLike, "n h w c"], *, num_columns: int | None = None, scale: int | None = None
) -> Picture:
    """Arranges images in a grid on white, by default nearly square.

    `scale` repeats pixels, so that small images stay sharp; by default images get at least
    `TILE` pixels. Raises: ValueError unless images are (n, h, w, 1 or 3) with n >= 1, and
    num_columns and scale are at least 1.
    """
    tiles = _enlarge(_to_uint8(images), scale)
    num_columns = math.ceil(len(tiles) ** 0.5) if num_columns is None else num_columns
    if num_columns < 1:
        raise ValueError(f"image_grid needs num_columns >= 1; got {num_columns}.")
    return _tile(tiles, num_columns, gap=GAP)


def denoising_sequence(
    trajectory: Float[ArrayLike, "steps n h w c"], *, num_frames: int = 10, scale: int | None = None
) -> Picture:
    """Draws one row per image: at most `num_frames` evenly spaced steps, first and last included.

    Noise exceeds [0, 1] by far, so each frame is scaled until its middle 98 % fits; a frame within
    [0, 1] is unchanged.
    Raises: ValueError if the shape is wrong, there are no steps or num_frames < 2; and as
    `image_grid`.
    """
    trajectory = np.asarray(trajectory, np.float32)
    if trajectory.ndim != 5:
        raise ValueError(
            f"denoising_sequence needs (steps, n, h, w, c); got shape {trajectory.shape}."
        )
    if num_frames < 2:
        raise ValueError(f"denoising_sequence needs num_frames >= 2; got {num_frames}.")
    num_shown = min(num_frames, len(trajectory))
    frames = trajectory[np.linspace(0, len(trajectory) - 1, num_shown).round().astype(int)]
    rows = np.stack([_shrink(frame) for frame in frames], axis=1)
    return image_grid(rows.reshape(-1, *rows.shape[2:]), num_columns=num_shown, scale=scale)


def neighbours_picture(
    samples: Float[ArrayLike, "n h w c"],
    neighbours: Float[ArrayLike, "n k h w c"],
    *,
    num_columns: int = 10,
    scale: int | None = None,
) -> Picture:
    """Draws each sample in a blue frame, above its k nearest training images, nearest first.

    Raises: ValueError if the shapes are wrong, there are no samples or scale < 1.
    """
    samples, neighbours = np.asarray(samples), np.asarray(neighbours)
    if neighbours.ndim != 5 or neighbours[:, 0].shape != samples.shape or not len(samples):
        raise ValueError(
            "neighbours_picture needs samples (n, h, w, c) and neighbours (n, k, h, w, c); "
            f"got {samples.shape} and {neighbours.shape}."
        )
    columns = np.concatenate([samples[:, None], neighbours], axis=1)
    num_columns = min(num_columns, len(columns))
    blocks = [
        _framed_block(columns[start : start + num_columns], num_columns, scale)
        for start in range(0, len(columns), num_columns)
    ]
    space = np.full((4 * GAP, blocks[0].shape[1], 3), PAPER, np.uint8)
    return np.concatenate([part for block in blocks for part in (block, space)][:-1])


def histogram_picture(
    values: Mapping[str, ArrayLike], *, xlabel: str, title: str = "", num_bins: int = 50
) -> Picture:
    """Overlays histograms of unit area on common bins; a dashed line marks each mean.

    Non-finite values are left out and counted in the legend.
    Raises: ValueError if no value is finite.
    """
    finite = {name: _finite(v) for name, v in values.items()}
    pooled = np.concatenate([kept for kept, _ in finite.values()])
    if not pooled.size:
        raise ValueError("histogram_picture needs at least one finite value; got none.")
    edges = np.histogram_bin_edges(pooled, num_bins)
    figure, axes = _axes(xlabel=xlabel, ylabel="density", title=title)
    for colour, (name, (kept, num_lost)) in zip(_colours(finite), finite.items(), strict=True):
        if not kept.size:
            axes.plot([], color=colour, label=f"{name}: none finite")
            continue
        label = f"{name}: mean {kept.mean():.3g}" + (f" ({num_lost} lost)" if num_lost else "")
        axes.hist(kept, edges, density=True, color=colour, alpha=0.35)
        axes.hist(
            kept, edges, density=True, color=colour, histtype="step", linewidth=1.5, label=label
        )
        axes.axvline(kept.mean(), color=colour, linestyle="--", linewidth=1)
    axes.grid(visible=False, axis="x")
    return _render(figure, axes, num_series=len(finite))


def curve_picture(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    xlabel: str = "step",
    ylabel: str = "",
    title: str = "",
) -> Picture:
    """Draws curves over training steps; a curve of 100 values or more also gets a running mean.

    The vertical range ends at the 99th percentile if the maximum exceeds it by more than the range
    below it, so that a steep start does not flatten the rest.
    Raises: ValueError unless each curve has one value per step.
    """
    steps = np.asarray(steps)
    figure, axes = _axes(xlabel=xlabel, ylabel=ylabel, title=title)
    for colour, (name, values) in zip(_colours(curves), curves.items(), strict=True):
        values = np.asarray(values, np.float64)
        if values.shape != steps.shape:
            raise ValueError(
                f"curve_picture needs one value per step; got {values.shape} values of {name!r} "
                f"for {steps.shape} steps."
            )
        window = len(values) // 50
        strong = _running_mean(values, window) if window > 1 else values
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        marker = "o" if len(values) <= 20 else None
        axes.plot(steps, strong, color=colour, linewidth=1.8, marker=marker, ms=4, label=name)
    if steps.dtype.kind in "iu":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(*_vertical_range(curves.values()))
    axes.margins(x=0.01)
    return _render(figure, axes, num_series=len(curves))


def save_png(path: str | os.PathLike, picture: Picture | UInt8[np.ndarray, "height width"]) -> None:
    """Writes a PNG atomically, in grey if the picture has no channels.

    A reader, or a crash, never leaves half a file. A large picture is written in strips, which
    takes no memory for copies of it.
    Raises: ValueError unless the picture is uint8 (h, w, 3) or (h, w).
    """
    from PIL import Image

    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or (picture.ndim, picture.shape[2:]) not in ((3, (3,)), (2, ())):
        raise ValueError(
            f"save_png needs uint8 (h, w, 3), or (h, w); got {picture.dtype} {picture.shape}. "
            "Convert images with image_grid."
        )
    with written_whole(path) as file:
        num_rows = rows_of_strip(picture.shape[1])
        if len(picture) > num_rows:
            write_strips(file, picture, num_rows)
        else:
            Image.fromarray(picture).save(file, format="PNG", optimize=True)


def _to_uint8(images: ArrayLike) -> UInt8[np.ndarray, "n h w 3"]:
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not len(images):
        raise ValueError(
            f"Pictures need images (n, h, w, 1 or 3), at least one; got shape {images.shape}."
        )
    finite = np.isfinite(images).all(axis=3)
    pixels = np.where(finite[..., None], images, 0).clip(0, 1)
    pixels = np.broadcast_to((pixels * 255).round(), (*images.shape[:3], 3)).astype(np.uint8)
    pixels[~finite] = NOT_FINITE
    return pixels


def _enlarge(tiles: UInt8[np.ndarray, "n h w 3"], scale: int | None) -> np.ndarray:
    scale = math.ceil(TILE / max(tiles.shape[1:3])) if scale is None else scale
    if scale < 1:
        raise ValueError(f"Pictures need scale >= 1; got {scale}.")
    return tiles.repeat(scale, axis=1).repeat(scale, axis=2)


def _tile(tiles: UInt8[np.ndarray, "n h w 3"], num_columns: int, *, gap: int) -> Picture:
    n, h, w, _ = tiles.shape
    num_rows = math.ceil(n / num_columns)
    height, width = num_rows * (h + gap) + gap, num_columns * (w + gap) + gap
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = gap + i // num_columns * (h + gap), gap + i % num_columns * (w + gap)
        canvas[y : y + h, x : x + w] = tile
    return canvas


def _framed_block(columns: np.ndarray, num_columns: int, scale: int | None) -> Picture:
    n, num_rows, *shape = columns.shape
    tiles = _enlarge(_to_uint8(np.swapaxes(columns, 0, 1).reshape(-1, *shape)), scale)
    _, h, w, _ = tiles.shape
    blank = np.full((num_rows, num_columns - n, h, w, 3), PAPER, np.uint8)
    rows = np.concatenate([tiles.reshape(num_rows, n, h, w, 3), blank], axis=1)
    gap, line = 3 * GAP, GAP
    canvas = _tile(rows.reshape(-1, h, w, 3), num_columns, gap=gap)
    for i in range(n):
        left = gap + i * (w + gap) - line
        frame = canvas[gap - line : gap + h + line, left : left + w + 2 * line]
        frame[:line], frame[-line:], frame[:, :line], frame[:, -line:] = (FRAME,) * 4
    return canvas


def _shrink(frame: np.ndarray) -> np.ndarray:
    kept, _ = _finite(frame)
    low, high = np.quantile(kept, [0.01, 0.99]) if kept.size else (0, 1)
    low, high = min(low, 0), max(high, 1)
    return (frame - low) / (high - low)


def _finite(values: ArrayLike) -> tuple[np.ndarray, int]:
    values = np.asarray(values, np.float64).ravel()
    kept = values[np.isfinite(values)]
    return kept, values.size - kept.size


def _colours(series: Mapping) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(series))]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, fewer at the ends; non-finite values are skipped."""
    kernel, finite = np.ones(window), np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    count = np.convolve(finite, kernel, mode="same")
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _vertical_range(curves) -> tuple[float, float]:
    kept = np.concatenate([_finite(values)[0] for values in curves])
    if not kept.size:
        return 0.0, 1.0
    low, high, typical = kept.min(), kept.max(), np.quantile(kept, 0.99)
    if high - typical > typical - low:
        high = typical
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _axes(*, xlabel: str, ylabel: str, title: str):
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _render(figure, axes, *, num_series: int) -> Picture:
    if num_series:
        axes.legend(fontsize=9, edgecolor="none", framealpha=0.85)
    return rendered(figure)


def rendered(figure) -> Picture:
    """The pixels of a Matplotlib figure, drawn without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
