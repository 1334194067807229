# SPDX-License-Identifier: Apache-2.0
"""Reports: dictionaries of numbers, written as JSON, with pictures and samples beside them."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from scorejax.data import trajectories
from scorejax.evaluate import pictures
from scorejax.evaluate.parts import Arrays
from scorejax.evaluate.progress import Metric, sample_caption
from scorejax.files import save_npz, save_text
from scorejax.random import row_keys
from scorejax.report import json_values, save_picture, save_table, with_caption
from scorejax.rl.rollout import Episodes
from scorejax.train import parallel

MOST_DRAWN = 100
"""Largest number of samples in a grid."""


def save_and_print(path: str | os.PathLike, report: dict[str, Any]) -> None:
    """Writes a report as JSON, atomically, then prints it and the path; NaN and infinity are null.

    Raises: OSError if the file cannot be written.
    """
    text = json.dumps(json_values(report), indent=2, allow_nan=False)
    save_text(path, f"{text}\n")
    print(f"{text}\n{path}")


def metrics_report(
    seed: int, metrics: Sequence[Metric], variables: Any, step: int | None, out: str
) -> dict:
    """Scalars of all metrics; the first process writes their pictures and tables.

    `step` is that of the variables, for captions; without a run both are None.

    They are <out>_<name>.png, or .gif, and <out>_<name>.csv.
    """
    report, variables = {}, parallel.share(variables)
    for rng, metric in zip(row_keys(jax.random.key(seed), len(metrics)), metrics, strict=True):
        evaluation = metric(rng, variables)
        report |= evaluation.scalars
        if jax.process_index() == 0:
            save_pictures(out, evaluation.captioned(step))
            for name, rows in evaluation.tables.items():
                save_table(f"{out}_{name}.csv", rows)
    return report


def save_pictures(out: str, drawn: Mapping[str, np.ndarray]) -> None:
    """Writes pictures to <out>_<name>.png, or .gif. Raises: as `save_picture`."""
    for name, picture in drawn.items():
        save_picture(f"{out}_{name}", picture)


def require_finite(rows: Arrays, kind: str, out: str) -> None:
    """Raises RuntimeError, one line with the count, if a row has numbers that are not finite.

    `kind` names the rows, and `out` is where they were written, for whoever looks for the reason.
    """
    finite = np.ones(len(next(iter(rows.values()))), bool)
    for values in map(np.asarray, rows.values()):
        if values.dtype.kind == "f":
            finite &= np.isfinite(values.reshape(len(finite), -1)).all(axis=1)
    if not finite.all():
        raise RuntimeError(
            f"{(~finite).sum()} of {len(finite)} {kind} are not finite; all are in {out}.npz. "
            "Look at the run's loss, take an earlier --step, or more steps of the sampler"
        )


def save_samples(out: str, samples: Arrays, *, step: int, sampler: str = "") -> str:
    """Writes <out>.npz with images (or vectors "x"), nfe and step; <out>.png is a grid of images.

    Its caption has the `sampler`, its mean number of evaluations and the step.

    Episodes become demonstrations, `data.trajectories.load_npz` of <out>.npz. Returns the paths.
    """
    if "observations" in samples:
        episodes = trajectories.from_rollouts(
            [samples[field] for field in Episodes._fields], name=out
        )
        trajectories.save_npz(f"{out}.npz", episodes)
        return f"{out}.npz"
    if "image" not in samples:
        save_npz(f"{out}.npz", **samples, step=step)
        return f"{out}.npz"
    save_npz(f"{out}.npz", images=samples["image"], nfe=samples["nfe"], step=step)
    grid = pictures.image_grid(samples["image"][:MOST_DRAWN])
    caption = f"{sample_caption(sampler, samples['nfe'])}, step {step}"
    pictures.save_png(f"{out}.png", with_caption(grid, caption))
    return f"{out}.png, {out}.npz"


def save_completions(out: str, completions: Arrays) -> str:
    """Writes "original", "measured" and "image" (n, h, w, c) in [0, 1] to <out>.npz.

    <out>.png shows the first 16 in three rows. Returns a line with the root mean squared errors of
    the measured and of the completed images.
    """
    save_npz(f"{out}.npz", **completions)
    original = completions["original"]
    shown = [completions[name][:16] for name in ("original", "measured", "image")]
    grid = pictures.image_grid(np.concatenate(shown), num_columns=len(shown[0]))
    pictures.save_png(f"{out}.png", grid)
    error = lambda name: np.sqrt(np.mean((completions[name] - original) ** 2))
    return (
        f"{len(original)} images; root mean squared error of the measured images "
        f"{error('measured'):.4f}, of the completed ones {error('image'):.4f}: {out}.png, {out}.npz"
    )
