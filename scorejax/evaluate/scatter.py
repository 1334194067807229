# SPDX-License-Identifier: Apache-2.0
"""Scatter plots of points in the plane, coloured by value."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8


def scatter_picture(
    points: Float[ArrayLike, "n 2"],
    values: Float[ArrayLike, "n"],
    background: Float[ArrayLike, "m 2"],
    *,
    xlabel: str = "",
    ylabel: str = "",
    legend: str = "",
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws points coloured by their values, with a colour bar, over grey background points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    points, background = np.asarray(points), np.asarray(background)
    figure = Figure(figsize=(6, 5), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.scatter(*background.T, s=4, color="#d0d0d0", linewidths=0)
    shown = axes.scatter(*points.T, s=18, c=np.asarray(values), cmap="viridis")
    figure.colorbar(shown, ax=axes, label=legend)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
