# SPDX-License-Identifier: Apache-2.0
"""Scores of predicted masks and instances against the truth, per image.

Two conventions hold throughout. A score is 1 if truth and prediction are both empty, and 0 if only
one is. The score of a set is the mean over its images, with a bootstrap interval over images; it
does not depend on how images were batched.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from scorejax.evaluate.bands import bands
from scorejax.files import scratch

Mask = Bool[np.ndarray, "h w"]
Instances = Int[np.ndarray, "h w"]


class PixelScores(NamedTuple):
    """Agreement of two masks; every score is in [0, 1]."""

    iou: float
    """Intersection over union: TP / (TP + FP + FN), Jaccard's index."""
    dice: float
    """2 TP / (2 TP + FP + FN), which equals the F1 score of pixels."""
    precision: float
    recall: float


def pixel_scores(truth: Mask, prediction: Mask) -> PixelScores:
    """Scores a mask pixel by pixel. Raises: ValueError unless both are boolean, of one shape."""
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.dtype != bool or prediction.dtype != bool:
        raise ValueError(
            f"pixel_scores needs boolean masks of one shape; got {truth.dtype} {truth.shape} and "
            f"{prediction.dtype} {prediction.shape}."
        )
    both, true, predicted = (int(np.sum(a)) for a in (truth & prediction, truth, prediction))
    if true == predicted == 0:
        return PixelScores(1.0, 1.0, 1.0, 1.0)
    return PixelScores(
        iou=both / (true + predicted - both),
        dice=2 * both / (true + predicted),
        precision=both / predicted if predicted else 0.0,
        recall=both / true if true else 0.0,
    )


def aggregated_jaccard(truth: Instances, prediction: Instances) -> float:
    """Aggregated Jaccard index (AJI): summed intersections over summed unions of best matches.

    The best match of a true instance is the predicted instance of largest IoU, the first one in
    case of ties; it may match several true instances. Predicted instances that match none are added
    to the union. Raises: ValueError unless both have one shape and no negative number.
    Source: Kumar et al. 2017, IEEE TMI 36(7), Algorithm 1.
    """
    pairs, true, predicted = _overlaps(truth, prediction)
    if not len(true) or not len(predicted):
        return float(len(true) == len(predicted))
    union = true[pairs.rows] + predicted[pairs.columns] - pairs.both
    # Sort by true instance, then by decreasing IoU, then by the number of the predicted instance.
    order = np.lexsort((pairs.columns, -pairs.both / union, pairs.rows))
    rows, first = np.unique(pairs.rows[order], return_index=True)
    best = order[first]
    matched, joined = np.zeros(len(true), bool), np.zeros(len(true), np.int64)
    matched[rows], joined[rows] = True, union[best]
    unused = np.setdiff1d(np.arange(len(predicted)), pairs.columns[best])
    total = joined[matched].sum() + true[~matched].sum() + predicted[unused].sum()
    return float(pairs.both[best].sum() / total)


class PanopticQuality(NamedTuple):
    """pq = sq * rq, with sq the mean IoU of matches and rq the F1 score of detection."""

    pq: float
    sq: float
    rq: float


def panoptic_quality(truth: Instances, prediction: Instances) -> PanopticQuality:
    """Panoptic quality; instances match if their IoU is above 1/2, so that matches are unique.

    Raises: ValueError unless both have one shape and no negative number.
    Source: Kirillov et al. 2019, arXiv:1801.00868, Eqs. 1-2.
    """
    pairs, true, predicted = _overlaps(truth, prediction)
    if not len(true) and not len(predicted):
        return PanopticQuality(1.0, 1.0, 1.0)
    overlap = pairs.both / (true[pairs.rows] + predicted[pairs.columns] - pairs.both)
    matched = overlap[overlap > 0.5]
    sq = float(matched.mean()) if matched.size else 0.0
    rq = 2 * matched.size / (len(true) + len(predicted))
    return PanopticQuality(sq * rq, sq, rq)


def separate(mask: Mask, *, min_distance: int = 3, contacts: Mask | None = None) -> Instances:
    """Splits touching convex objects by a watershed of the distance to the background.

    Each instance grows from a peak of the smoothed distance. Peaks are at least `min_distance`
    pixels apart; choose slightly less than the radius of the smallest object.
    `contacts` are pixels of the mask where two objects meet; the distance is then to them as well.
    A mask of more than `bands.PIXELS` pixels is separated in bands of rows, whose memory, some 50
    bytes a pixel, does not grow with the mask. Objects come out as from the whole mask, except that
    regions of more rows than `bands` says are cut.
    Raises: ValueError unless min_distance >= 1.
    """
    if min_distance < 1:
        raise ValueError(f"separate needs min_distance >= 1 pixel; got {min_distance}.")
    mask = np.asarray(mask, bool)
    instances, num = scratch(mask.shape, np.int32), 0
    for rows, regions in bands(mask):
        met = None if contacts is None else contacts[rows]
        grown = _grown(mask[rows], regions, min_distance, met)
        inside = grown > 0
        instances[rows][inside] = grown[inside] + num
        num += grown.max(initial=0)
    return instances


def _grown(
    mask: Mask, regions: Int[np.ndarray, "h w"], min_distance: int, contacts: Mask | None
) -> Int[np.ndarray, "h w"]:
    """Instances in the numbered regions of a mask, which may have others beside them."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    # Objects are continued beyond the image; otherwise one cut by the edge would peak away from it.
    inside = mask if contacts is None else mask & ~contacts
    distance = ndimage.distance_transform_edt(np.pad(inside, min_distance, mode="edge"))
    inner = (slice(min_distance, -min_distance),) * 2
    smooth = ndimage.gaussian_filter(distance, 1.0)[inner]
    peaks = peak_local_max(smooth, min_distance=min_distance, labels=regions, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = 1 + np.arange(len(peaks))
    instances = watershed(-smooth, markers, mask=regions > 0).astype(np.int32)
    # A region without a peak, such as a plateau, becomes an instance as a whole.
    rest, _ = ndimage.label((regions > 0) & (instances == 0))
    return instances + np.where(rest > 0, rest + len(peaks), 0).astype(np.int32)


def image_scores(
    truth: Instances,
    probability: Float[np.ndarray, "h w"],
    *,
    threshold: float = 0.5,
    min_distance: int = 3,
) -> dict[str, float]:
    """All scores of one image by name; the thresholded mask is split by `separate`."""
    mask = np.asarray(probability) > threshold
    return instance_scores(truth, separate(mask, min_distance=min_distance))


def instance_scores(truth: Instances, predicted: Instances) -> dict[str, float]:
    """All scores of one image by name; masks are the unions of the instances."""
    return {
        **pixel_scores(np.asarray(truth) > 0, np.asarray(predicted) > 0)._asdict(),
        "aji": aggregated_jaccard(truth, predicted),
        **panoptic_quality(truth, predicted)._asdict(),
    }


class Interval(NamedTuple):
    """Mean over images, and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """BCa bootstrap confidence interval of a mean.

    Values need to be independent: crops of one image, or images of one patient, are not. The
    interval is NaN for a single value, and a point for values equal up to rounding.
    Raises: ValueError unless values are (n,) with n >= 1.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap_interval needs values (n,), n >= 1; got {values.shape}.")
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    if np.ptp(values) <= len(values) * np.finfo(np.float64).eps * np.abs(values).max():
        return Interval(mean, mean, mean)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high))


def summary(scores: Sequence[Mapping[str, float]], *, seed: int = 0) -> dict[str, Interval]:
    """Confidence interval of each score over images, by name.

    Raises: ValueError if there are no scores.
    """
    if not scores:
        raise ValueError("summary needs the scores of at least one image; got none.")
    return {name: bootstrap_interval([s[name] for s in scores], seed=seed) for name in scores[0]}


def batch_iou_and_dice(
    truth: Float[np.ndarray, "*d"], probability: Float[np.ndarray, "*d"], *, threshold: float = 0.5
) -> tuple[float, float]:
    """IoU and Dice over all pixels of a batch, as BiO-Net's published code scores them.

    The published numbers average them over batches, so they depend on the batch size; use them only
    for comparison. Both are NaN if truth and prediction are empty.
    """
    predicted = np.asarray(probability) > threshold
    both = float((np.asarray(truth) * predicted).sum())
    total = float(np.sum(truth) + predicted.sum())
    if total == 0:
        return float("nan"), float("nan")
    return both / (total - both), 2 * both / total


class _Pairs(NamedTuple):
    """Pairs of true and predicted instances that share pixels: their indices and the overlap."""

    rows: Int[np.ndarray, "n"]
    columns: Int[np.ndarray, "n"]
    both: Int[np.ndarray, "n"]


def _overlaps(
    truth: Instances, prediction: Instances
) -> tuple[_Pairs, Int[np.ndarray, "t"], Int[np.ndarray, "p"]]:
    """Overlapping pairs, and the sizes (t,) and (p,) in pixels of true and predicted instances.

    Memory grows with the number of pixels; a (t, p) table for 20,000 nuclei would take 3 GB.
    """
    if np.shape(truth) != np.shape(prediction):
        raise ValueError(
            f"instances need one shape; got {np.shape(truth)} and {np.shape(prediction)}."
        )
    true, predicted = _renumbered(truth), _renumbered(prediction)
    num_columns = predicted.max(initial=0) + 1
    numbers, both = np.unique(true * num_columns + predicted, return_counts=True)
    rows, columns = np.divmod(numbers, num_columns)
    inside = (rows > 0) & (columns > 0)
    pairs = _Pairs(rows[inside] - 1, columns[inside] - 1, both[inside])
    return pairs, np.bincount(true)[1:], np.bincount(predicted)[1:]


def _renumbered(instances: Instances) -> np.ndarray:
    """Flattened instance numbers without gaps, with 0 for background."""
    _, numbers = np.unique(np.append(0, np.ravel(instances)), return_inverse=True)
    if np.min(instances, initial=0) < 0:
        raise ValueError(f"instances need non-negative numbers; got {np.min(instances)}.")
    return numbers[1:]
