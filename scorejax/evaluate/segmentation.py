# SPDX-License-Identifier: Apache-2.0
"""How well masks and instances agree with the truth, image by image.

Two conventions hold throughout. If truth and prediction are both empty the score is 1, since they
agree; if one is empty it is 0. A score of a set is the mean over its images, with an interval by
the bootstrap over images, so that it does not depend on how images were batched.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

Mask = Bool[np.ndarray, "h w"]
Instances = Int[np.ndarray, "h w"]


class PixelScores(NamedTuple):
    """Agreement of two masks; all are in [0, 1]."""

    iou: float
    """Intersection over union: TP / (TP + FP + FN), Jaccard's index."""
    dice: float
    """2 TP / (2 TP + FP + FN): the F1 score of pixels is the same number."""
    precision: float
    recall: float


def pixel_scores(truth: Mask, prediction: Mask) -> PixelScores:
    """Counts pixels. Raises: ValueError unless both are boolean, of one shape."""
    truth, prediction = np.asarray(truth), np.asarray(prediction)
    if truth.shape != prediction.shape or truth.dtype != bool or prediction.dtype != bool:
        raise ValueError(
            f"pixel_scores needs boolean masks of one shape; got {truth.dtype} {truth.shape} and "
            f"{prediction.dtype} {prediction.shape}."
        )
    both, true, found = (int(np.sum(a)) for a in (truth & prediction, truth, prediction))
    if true == found == 0:
        return PixelScores(1.0, 1.0, 1.0, 1.0)
    return PixelScores(
        iou=both / (true + found - both),
        dice=2 * both / (true + found),
        precision=both / found if found else 0.0,
        recall=both / true if true else 0.0,
    )


def aggregated_jaccard(truth: Instances, prediction: Instances) -> float:
    """Intersections over unions of true instances with their best match, over the whole image.

    The best match of a true instance is the predicted one of largest IoU, the first of equals; it
    may serve several. Predicted instances that serve none are added to the union.
    Source: Kumar et al. 2017, IEEE TMI 36(7), Algorithm 1.
    """
    pairs, true, found = _overlaps(truth, prediction)
    if not len(true) or not len(found):
        return float(len(true) == len(found))
    union = true[pairs.rows] + found[pairs.columns] - pairs.both
    # By true instance, the largest IoU first, of equals the predicted instance that comes first.
    order = np.lexsort((pairs.columns, -pairs.both / union, pairs.rows))
    rows, first = np.unique(pairs.rows[order], return_index=True)
    best = order[first]
    matched, joined = np.zeros(len(true), bool), np.zeros(len(true), np.int64)
    matched[rows], joined[rows] = True, union[best]
    unused = np.setdiff1d(np.arange(len(found)), pairs.columns[best])
    total = joined[matched].sum() + true[~matched].sum() + found[unused].sum()
    return float(pairs.both[best].sum() / total)


class PanopticQuality(NamedTuple):
    """pq = sq * rq: mean IoU of the matched, and the F1 score of matching."""

    pq: float
    sq: float
    rq: float


def panoptic_quality(truth: Instances, prediction: Instances) -> PanopticQuality:
    """Instances match if their IoU is above one half, which makes the match unique.

    Source: Kirillov et al. 2019, arXiv:1801.00868, Eqs. 1-2.
    """
    pairs, true, found = _overlaps(truth, prediction)
    if not len(true) and not len(found):
        return PanopticQuality(1.0, 1.0, 1.0)
    overlap = pairs.both / (true[pairs.rows] + found[pairs.columns] - pairs.both)
    matched = overlap[overlap > 0.5]
    sq = float(matched.mean()) if matched.size else 0.0
    rq = 2 * matched.size / (len(true) + len(found))
    return PanopticQuality(sq * rq, sq, rq)


def separate(mask: Mask, *, min_distance: int = 3) -> Instances:
    """Cuts touching convex objects apart: watershed of the distance to the background.

    Each instance grows from a peak of the distance, smoothed by a pixel; peaks are at least
    `min_distance` pixels apart, which should be just under the radius of the smallest object.
    Raises: ValueError unless min_distance >= 1.
    """
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    if min_distance < 1:
        raise ValueError(f"separate needs min_distance >= 1 pixel; got {min_distance}.")
    mask = np.asarray(mask, bool)
    # Beyond the image the object is taken to go on, or one that is cut would peak off its edge.
    distance = ndimage.distance_transform_edt(np.pad(mask, min_distance, mode="edge"))
    inner = (slice(min_distance, -min_distance),) * 2
    smooth = ndimage.gaussian_filter(distance, 1.0)[inner]
    regions, _ = ndimage.label(mask)
    peaks = peak_local_max(smooth, min_distance=min_distance, labels=regions, exclude_border=False)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = 1 + np.arange(len(peaks))
    instances = watershed(-smooth, markers, mask=mask).astype(np.int32)
    # A region without a peak of its own, such as a plateau, is an instance all the same.
    rest, _ = ndimage.label(mask & (instances == 0))
    return instances + np.where(rest > 0, rest + len(peaks), 0).astype(np.int32)


def image_scores(
    truth: Instances,
    probability: Float[np.ndarray, "h w"],
    *,
    threshold: float = 0.5,
    min_distance: int = 3,
) -> dict[str, float]:
    """All scores of one image, by name; predicted instances come from `separate`."""
    mask = np.asarray(probability) > threshold
    return instance_scores(truth, separate(mask, min_distance=min_distance))


def instance_scores(truth: Instances, predicted: Instances) -> dict[str, float]:
    """All scores of one image, by name, of instances that are there; its mask is where they are."""
    return {
        **pixel_scores(np.asarray(truth) > 0, np.asarray(predicted) > 0)._asdict(),
        "aji": aggregated_jaccard(truth, predicted),
        **panoptic_quality(truth, predicted)._asdict(),
    }


class Interval(NamedTuple):
    """A mean over images, and where it would lie with other images of the kind."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The BCa bootstrap interval of a mean; of one value it is not known, so it is NaN.

    Of values that differ by no more than the rounding of their sum it is a point.
    It takes the values for independent: pieces of one image, or images of one patient, are not.
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
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def summary(scores: Sequence[Mapping[str, float]], *, seed: int = 0) -> dict[str, Interval]:
    """The interval of each score over images.

    Raises: ValueError without the scores of any image.
    """
    if not scores:
        raise ValueError("summary needs the scores of at least one image; got none.")
    return {name: bootstrap_interval([s[name] for s in scores], seed=seed) for name in scores[0]}


def batch_iou_and_dice(
    truth: Float[np.ndarray, "*d"], probability: Float[np.ndarray, "*d"], *, threshold: float = 0.5
) -> tuple[float, float]:
    """BiO-Net's published scores: of all pixels of a batch at once, then averaged over batches.

    They depend on the size of the batch, and are NaN where all is empty: only for comparison with
    published numbers.
    """
    found = np.asarray(probability) > threshold
    both = float((np.asarray(truth) * found).sum())
    total = float(np.sum(truth) + found.sum())
    if total == 0:
        return float("nan"), float("nan")
    return both / (total - both), 2 * both / total


class _Pairs(NamedTuple):
    """Of true and predicted instances that share pixels, in order: which, from 0, and how many."""

    rows: Int[np.ndarray, "n"]
    columns: Int[np.ndarray, "n"]
    both: Int[np.ndarray, "n"]


def _overlaps(
    truth: Instances, prediction: Instances
) -> tuple[_Pairs, Int[np.ndarray, "t"], Int[np.ndarray, "p"]]:
    """The pairs that share pixels, and the sizes (t,) and (p,) of true and predicted instances.

    Memory grows with pixels alone: a table (t, p) of 20,000 nuclei would be of 3 GB.
    """
    if np.shape(truth) != np.shape(prediction):
        raise ValueError(
            f"instances need one shape; got {np.shape(truth)} and {np.shape(prediction)}."
        )
    true, found = _renumbered(truth), _renumbered(prediction)
    num_columns = found.max(initial=0) + 1
    numbers, both = np.unique(true * num_columns + found, return_counts=True)
    rows, columns = np.divmod(numbers, num_columns)
    inside = (rows > 0) & (columns > 0)
    pairs = _Pairs(rows[inside] - 1, columns[inside] - 1, both[inside])
    return pairs, np.bincount(true)[1:], np.bincount(found)[1:]


def _renumbered(instances: Instances) -> np.ndarray:
    """Numbers without gaps, and 0 for background: a table of overlaps needs no empty rows."""
    _, numbers = np.unique(np.append(0, np.ravel(instances)), return_inverse=True)
    if np.min(instances, initial=0) < 0:
        raise ValueError(f"instances need numbers from 0 on; got {np.min(instances)}.")
    return numbers[1:]
