# SPDX-License-Identifier: Apache-2.0
"""Draws paths in a plane: side by side, and as an animation, uint8 (frames, height, width, 3)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from scorejax.evaluate.pictures import COLOURS, Picture

Paths = Sequence[Float[np.ndarray, "t 2"]]


def paths_picture(
    paths: Mapping[str, Paths],
    *,
    labels: tuple[str, str],
    density: Float[np.ndarray, "n 2"] | None = None,
) -> Picture:
    """Draws each set of paths in a panel of its own, all with the same axes.

    A dot marks where a path begins. Draws from a density are shown by their numbers in a last
    panel. Raises: ValueError without a path.
    """
    figure, panels = _panels(paths, labels, further=density is not None)
    if density is not None:
        panels[-1].set_title("density", fontsize=10)
        ranges = [panels[-1].get_xlim(), panels[-1].get_ylim()]
        panels[-1].hist2d(*density.T, bins=60, range=ranges, cmap="Blues")
    for (name, several), axes, colour in zip(paths.items(), panels, COLOURS, strict=False):
        axes.set_title(f"{name} ({len(several)})", fontsize=10)
        for path in several:
            axes.plot(*path.T, color=colour, linewidth=1, alpha=0.6)
            axes.plot(*path[0], "o", color=colour, markersize=3)
    return _drawn(figure)


def motion_frames(
    paths: Mapping[str, Paths], *, labels: tuple[str, str], num_frames: int
) -> UInt8[np.ndarray, "frames height width 3"]:
    """The same panels as the paths grow, each at its own pace, so that all end together.

    Raises: ValueError without a path.
    """
    return np.stack([*_frames(paths, labels, num_frames)])


def _frames(
    paths: Mapping[str, Paths], labels: tuple[str, str], num_frames: int
) -> Iterator[Picture]:
    figure, panels = _panels(paths, labels, size=2.6)
    drawn = []
    for (name, several), axes, colour in zip(paths.items(), panels, COLOURS, strict=False):
        axes.set_title(name, fontsize=9)
        for path in several:
            (way,) = axes.plot([], [], color=colour, linewidth=0.8, alpha=0.5)
            (head,) = axes.plot([], [], "o", color=colour, markersize=4)
            drawn.append((path, way, head))
    for share in np.linspace(0, 1, num_frames):
        for path, way, head in drawn:
            end = 1 + round(share * (len(path) - 1))
            way.set_data(*path[:end].T)
            head.set_data(*path[end - 1 : end].T)
        yield _drawn(figure)


def _panels(
    paths: Mapping[str, Paths], labels: tuple[str, str], *, size: float = 3.4, further: bool = False
):
    if not any(len(several) for several in paths.values()):
        raise ValueError("pictures of paths need at least one path; got none")
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    points = np.concatenate([path for several in paths.values() for path in several])
    points = points[np.isfinite(points).all(axis=1)]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.05 * (high - low) + 1e-6
    num = len(paths) + further
    figure = Figure(figsize=(size * num, size), dpi=110, layout="constrained")
    panels = figure.subplots(1, num, squeeze=False)[0]
    for axes in panels:
        axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
        axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
        axes.set_xlabel(labels[0])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(labels[1])
    return figure, panels


def _drawn(figure) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
