# SPDX-License-Identifier: Apache-2.0
"""Five disjoint sets of images: to train a classifier, and then to detect where it fails.

A classifier is right on nearly all images that it was trained on, and its features are tighter
there: a density or a threshold that saw them finds every new image odd.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scorejax.data.images import Images
from scorejax.data.view import ImageView


class FiveSets(NamedTuple):
    """Stored images with their labels. The first three are of the training split."""

    labelled: Images
    """Those that the classifier is trained on with their labels."""
    valid: Images
    """Those that choose its checkpoint, and whose mistakes may choose a score."""
    density: Images
    """Those that the density of features is fitted to; their labels are never used. Classifiers
    that train on images without labels see them too."""
    calibration: Images
    """Those that set thresholds; the first of the test split, in a random order."""
    test: Images


def five_sets(
    view: ImageView,
    *,
    seed: int,
    num_labelled: int,
    num_valid: int,
    num_calibration: int,
    held_out_classes: Sequence[int] = (),
) -> FiveSets:
    """Draws the sets by the seed; what they leave is for the density and for the test.

    Images of classes held out are in none of them, and the other classes are numbered anew, from 0
    on and in their order.
    Raises: ValueError if nothing is left, and as `images.load`.
    """
    rng = np.random.default_rng(seed)
    train, test = (without(view.stored(split), held_out_classes) for split in ("train", "test"))
    train = _cut(rng, train, "training", num_labelled=num_labelled, num_valid=num_valid)
    return FiveSets(*train, *_cut(rng, test, "test", num_calibration=num_calibration))


def without(images: Images, classes: Sequence[int]) -> Images:
    """The images of all other classes, whose labels are numbered anew without gaps."""
    kept = ~np.isin(images.label, classes)
    label = images.label[kept]
    below = np.sum(label[:, None] > np.array(classes, label.dtype)[None], axis=1)
    return Images(images.image[kept], label - below.astype(label.dtype))


def of_classes(images: Images, classes: Sequence[int]) -> Images:
    """The images of these classes, with their labels in the data set."""
    kept = np.isin(images.label, classes)
    return Images(images.image[kept], images.label[kept])


def _cut(rng: np.random.Generator, images: Images, split: str, **sizes: int) -> list[Images]:
    total = len(images.image)
    if sum(sizes.values()) >= total:
        numbers = " + ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{numbers} needs to be below the {total} images of the {split} split")
    parts = np.split(rng.permutation(total), np.cumsum([*sizes.values()]))
    return [Images(images.image[part], images.label[part]) for part in parts]
