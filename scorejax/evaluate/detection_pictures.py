# SPDX-License-Identifier: Apache-2.0
"""Pictures of scores that tell failures from normal examples. High scores mean normal."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from scorejax.evaluate.detection import auroc, excess_aurc, risk_coverage
from scorejax.evaluate.pictures import COLOURS, Picture, rendered

NUM_BINS = 20
NUM_COLUMNS = 4
SHOWN = (0.005, 0.995)
"""Quantiles between which scores are drawn; those outside are in the bins at the ends."""
STYLES = ("-", "--", ":")


def risk_coverage_picture(
    scores: Mapping[str, Float[ArrayLike, "n"]], failed: Bool[ArrayLike, "n"], *, title: str = ""
) -> Picture:
    """Draws the share of failures among the rows accepted by each score, over how many are.

    Grey is the risk that no score avoids, since it accepts failures where it accepts all else. The
    legend has the area above that, and begins with the least.
    Raises: ValueError as `risk_coverage`.
    """
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    failed = np.asarray(failed)
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    excess = {name: excess_aurc(values, failed) for name, values in scores.items()}
    best = risk_coverage(-np.arange(len(failed), dtype=float), np.sort(failed))
    axes.fill_between(best.coverage, best.risk, color="#dddddd", label="least possible")
    drawn = {name: i for i, name in enumerate(scores)}
    for name in sorted(scores, key=excess.get):
        curve, i = risk_coverage(scores[name], failed), drawn[name]
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % 3]}
        axes.plot(curve.coverage, curve.risk, label=f"{excess[name]:.3f} {name}", **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.6 * failed.mean()))
    axes.set_xlabel("coverage: share of rows that are accepted")
    axes.set_ylabel("risk: share of failures among them")
    axes.set_title(title, loc="left", fontsize=11)
    _plain(axes)
    legend = {"title": "excess area", "loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(fontsize=8, edgecolor="none", **legend)
    return rendered(figure)


def score_panels(
    normal: Mapping[str, Float[ArrayLike, "n"]],
    failures: Mapping[str, Float[ArrayLike, "m"]],
    *,
    name: str = "failures",
) -> Picture:
    """Draws histograms of unit area of each score of normal examples and of failures, in a panel.

    Panels go from 0.5 % to 99.5 % of both where they are finite; the outermost bins have what is
    beyond. Titles have the AUROC. Raises: ValueError as `auroc`.
    """
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    num_rows = math.ceil(len(normal) / NUM_COLUMNS)
    size = 2.6 * NUM_COLUMNS, 1.7 * num_rows + 0.4
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False).ravel()
    for axes, (score, values) in zip(panels, normal.items(), strict=False):
        _panel(axes, score, np.asarray(values, float), np.asarray(failures[score], float))
    for axes in panels[len(normal) :]:
        axes.axis("off")
    handles = panels[0].get_legend_handles_labels()[0]
    names = ["normal", name]
    figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=9, edgecolor="none")
    return rendered(figure)


def _panel(axes: Any, score: str, normal: np.ndarray, failures: np.ndarray) -> None:
    both = np.concatenate([normal, failures])
    failed = np.repeat([False, True], [len(normal), len(failures)])
    finite = both[np.isfinite(both)]
    low, high = np.quantile(finite, SHOWN) if finite.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    for values, colour in ((normal, COLOURS[0]), (failures, COLOURS[1])):
        inside = np.clip(values, edges[0], edges[-1])
        axes.hist(inside, edges, density=True, color=colour, alpha=0.5, label=score)
    axes.set_title(f"{score}  {auroc(both, failed):.2f}", loc="left", fontsize=9)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelsize=7)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
