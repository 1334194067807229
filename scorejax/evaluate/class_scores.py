# SPDX-License-Identifier: Apache-2.0
"""IoU and Dice of each class over all pixels of a set, and their means over classes.

A class that few pictures have is scored by those pixels; a mean of scores per picture would count
every picture without it as perfect. Intervals are of a bootstrap over pictures.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from scorejax.evaluate.segmentation import Interval

NUM_RESAMPLES = 2000
"""Draws of the bootstrap; an end of a 95 % interval then moves by some hundredths of its length."""


def class_counts(
    truth: Int[np.ndarray, "h w"], prediction: Int[np.ndarray, "h w"], num_classes: int
) -> Int[np.ndarray, "num_classes 2"]:
    """For each class of a picture: pixels on which both agree, and true plus predicted pixels.

    Pixels with a negative truth do not count. Raises: ValueError unless both have one shape.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"classes need one shape; got {truth.shape} and {prediction.shape}.")
    known = truth >= 0
    truth, prediction = truth[known], prediction[known]
    count = lambda numbers: np.bincount(numbers, minlength=num_classes)
    return np.stack([count(truth[truth == prediction]), count(truth) + count(prediction)], axis=1)


def class_summary(
    counts: Sequence[Int[np.ndarray, "k 2"]], *, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Scores of a set by name: iou_0, dice_0 and so on, mean_iou and mean_dice.

    The means are over the classes, the background among them, that are in the truth or in the
    prediction; a class that is in neither is NaN. Intervals are percentiles of a bootstrap, and NaN
    for a single picture. Raises: ValueError if there are no counts.
    """
    if not len(counts):
        raise ValueError("class_summary needs the counts of at least one picture; got none.")
    table = np.asarray(counts, np.float64)
    num = len(table)
    times = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
    resampled = np.einsum("rn,nkc->rkc", times, table)
    levels = [(1 - confidence) / 2, (1 + confidence) / 2]
    summary: dict[str, Interval] = {}
    for name, values, drawn in zip(
        ("iou", "dice"), _scores(table.sum(axis=0)), _scores(resampled), strict=True
    ):
        names = [f"{name}_{number}" for number in range(values.shape[-1])] + [f"mean_{name}"]
        values, drawn = _with_mean(values), _with_mean(drawn)
        for key, value, column in zip(names, values, drawn.T, strict=True):
            inside = column[np.isfinite(column)]
            ends = np.quantile(inside, levels) if num > 1 and len(inside) else (np.nan, np.nan)
            summary[key] = Interval(float(value), *map(float, ends))
    return summary


def _scores(
    counts: Float[np.ndarray, "*r k 2"],
) -> tuple[Float[np.ndarray, "*r k"], Float[np.ndarray, "*r k"]]:
    """IoU and Dice of counts; NaN where there is no pixel."""
    both, total = counts[..., 0], np.where(counts[..., 1] > 0, counts[..., 1], np.nan)
    return both / (total - both), 2 * both / total


def _with_mean(scores: Float[np.ndarray, "*r k"]) -> Float[np.ndarray, "*r k+1"]:
    """Appends the mean of the scores that are not NaN; NaN if there is none."""
    there = np.isfinite(scores)
    num = there.sum(axis=-1, keepdims=True)
    total = np.where(there, scores, 0).sum(axis=-1, keepdims=True)
    return np.concatenate([scores, total / np.where(num > 0, num, np.nan)], axis=-1)
