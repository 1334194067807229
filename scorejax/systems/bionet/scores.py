# SPDX-License-Identifier: Apache-2.0
"""Metrics of a segmentation network on annotated images, by name."""

import functools
from collections.abc import Callable

import numpy as np

from scorejax.data.channels import displayed
from scorejax.data.segmentation import AnnotatedImage
from scorejax.evaluate import segmentation, segmentation_pictures
from scorejax.evaluate.class_scores import class_counts, class_summary
from scorejax.evaluate.progress import Metric, Metrics, remembered
from scorejax.report import Evaluation
from scorejax.systems.bionet.task import Segmented, Task
from scorejax.typing import PRNGKeyArray, Variables

SCORES = ("iou", "dice", "precision", "recall", "aji", "pq", "sq", "rq")
UNRANKED = ("published", "overlays")
"""Metrics without a scalar of their name."""
NUM_OVERLAYS = 3

Images = tuple[AnnotatedImage, ...]
Segment = Callable[[Variables, np.ndarray], Segmented]


def make_metrics(
    load: Callable[[], Images], segment: Segment, task: Task, batch_size: int
) -> Metrics:
    """Scores of the images that `load` reads, with 95 % intervals, and overlays of the first.

    Of one class they are scores of instances and pixels, and "published": IoU and Dice as the
    official code has them, of all pixels of `batch_size` images together. Of several classes they
    are those of `class_summary`.
    """
    load = functools.cache(load)

    @remembered
    def segmented(variables: Variables) -> list[tuple[AnnotatedImage, Segmented]]:
        return [(image, segment(variables, image.image)) for image in load()]

    if task.options.num_classes > 1:
        metrics = _of_classes(segmented, task.options.num_classes)
    else:
        metrics = _of_instances(segmented, task.threshold, batch_size)

    def loaded(metric: Metric) -> Metric:
        load()
        return metric

    return {name: functools.partial(loaded, metric) for name, metric in metrics.items()}


Pairs = Callable[[Variables], list[tuple[AnnotatedImage, Segmented]]]


def _of_instances(segmented: Pairs, threshold: float, batch_size: int) -> dict[str, Metric]:
    @remembered
    def intervals(variables: Variables) -> dict[str, segmentation.Interval]:
        # What is predicted where the truth is not known is neither right nor wrong.
        known = lambda a, s: np.where(a.known, s.instances, 0)
        return segmentation.summary(
            [
                segmentation.instance_scores(a.instances, known(a, s))
                for a, s in segmented(variables)
            ]
        )

    def published(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        batches, pairs = [], segmented(variables)
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            truth = np.concatenate([image.mask[image.known] for image, _ in batch])
            p = np.concatenate([one.probability[image.known] for image, one in batch])
            batches.append(segmentation.batch_iou_and_dice(truth, p, threshold=threshold))
        iou, dice = np.mean(batches, axis=0)
        return Evaluation({"published_iou": float(iou), "published_dice": float(dice)}, {})

    def overlays(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        overlay, with_legend = segmentation_pictures.overlay, segmentation_pictures.with_legend
        return _pictures(
            segmented(variables),
            lambda a, s: with_legend(
                overlay(displayed(a.image), s.instances, a.instances), truth=True
            ),
        )

    metrics = {name: functools.partial(_score, name, intervals) for name in SCORES}
    return metrics | {"published": published, "overlays": overlays}


def _of_classes(segmented: Pairs, num_classes: int) -> dict[str, Metric]:
    @remembered
    def intervals(variables: Variables) -> dict[str, segmentation.Interval]:
        pairs = segmented(variables)
        return class_summary([class_counts(a.classes, s.classes, num_classes) for a, s in pairs])

    def overlays(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        """Prediction on the left, truth on the right."""
        overlay = functools.partial(segmentation_pictures.class_overlay, num_classes=num_classes)
        return _pictures(
            segmented(variables),
            lambda a, s: np.concatenate(
                [overlay(displayed(a.image), classes) for classes in (s.classes, a.classes)], axis=1
            ),
        )

    numbered = [f"{name}_{number}" for name in ("iou", "dice") for number in range(num_classes)]
    names = ("mean_iou", "mean_dice", *numbered)
    metrics = {name: functools.partial(_score, name, intervals) for name in names}
    return metrics | {"overlays": overlays}


def _score(name: str, intervals: Callable, rng: PRNGKeyArray, variables: Variables) -> Evaluation:
    interval = intervals(variables)[name]
    bounds = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return Evaluation({name: interval.mean} | bounds, {})


def _pictures(pairs: list[tuple[AnnotatedImage, Segmented]], draw: Callable) -> Evaluation:
    drawn = [draw(image, one) for image, one in pairs[:NUM_OVERLAYS]]
    return Evaluation({}, {f"overlay_{i}": picture for i, picture in enumerate(drawn)})
