# SPDX-License-Identifier: Apache-2.0
"""The images of a config: those trained on, those held out of training, those of the test."""

import dataclasses
import sys

import numpy as np
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_known
from scorejax.data import segmentation as data
from scorejax.data import segmentation_folders, segmentation_photographs
from scorejax.data.augmentation import Augmentation
from scorejax.data.channels import normalised
from scorejax.systems.bionet.task import Task, TaskOptions, appearance, build_task
from scorejax.typing import OfflineSource

SPLITS = {"train": "", "validation": "", "test": "test_"}
DATA_OPTIONS = (
    "layout", "data_dir", "num_images", "test_layout", "test_data_dir", "test_num_images",
    "image_side", "corner_patches", "masks", "damaged", "side", "augment",
    *(field.name for field in dataclasses.fields(Augmentation)),
)  # fmt: skip


def annotated_images(config: ConfigDict, split: str) -> tuple[data.AnnotatedImage, ...]:
    """The images of a split, "train", "validation" or "test", with their instances.

    The validation split is a share of the training images, `validation_fraction`, drawn by the
    seed; of few images it may be empty.
    Stderr names the files that `damaged="skip"` leaves out.
    Raises: ValueError if there are none, for an unknown layout, or for a count below 0.
    """
    prefix = choose("split", split, SPLITS)
    layout, count = config[f"{prefix}layout"], config[f"{prefix}num_images"]
    layouts = {"generated", *segmentation_photographs.PHOTOGRAPHS, *segmentation_folders.LAYOUTS}
    require_known(f"{prefix}layout", layout, layouts)
    task = build_task(config)
    require(config, (f"{prefix}num_images",), lambda v: v >= 0, "to be at least 0, which is all")
    if layout == "generated":
        require(config, (f"{prefix}num_images",), lambda v: v >= 1, "to be at least 1")
        # Two streams: no picture of one split is in the other.
        seed, num_classes = 2 * config.seed + bool(prefix), task.options.num_classes
        images = data.generated(count, config.image_side, seed, num_classes=num_classes)
    elif layout in segmentation_photographs.PHOTOGRAPHS:
        require(vars(task.options), ("num_classes",), lambda v: v == 1, "to be 1 for photographs")
        half = "test" if prefix else "train"
        images = (segmentation_photographs.photograph(layout, half),)
    else:
        folder = config[f"{prefix}data_dir"]
        if not folder:
            raise ValueError(f"{prefix}layout {layout!r} needs {prefix}data_dir, a folder")
        reading = segmentation_folders.read(
            folder,
            layout,
            masks=config.get("masks", "regions"),
            num_classes=task.options.num_classes,
            ignore_label=task.options.ignore_label,
            damaged=config.damaged,
            load=task.load,
        )
        for line in reading.skipped if split != "validation" else ():  # said of "train" already
            print(f"left out: {line}", file=sys.stderr, flush=True)
        images = reading.annotated
    if layout not in segmentation_folders.LAYOUTS:
        images = coloured(images, layout, task)
    images = images[:count] if count else images
    if not prefix:
        images = part_of_training(config, images, split)
    if config.corner_patches:
        images = tuple(p for image in images for p in data.corner_patches(image, config.side))
    return images


def part_of_training(
    config: ConfigDict, images: tuple[data.AnnotatedImage, ...], split: str
) -> tuple[data.AnnotatedImage, ...]:
    """The training images that are trained on, or those held out, each in order."""
    fraction, num = config.get("validation_fraction", 0.0), len(images)
    if not 0 <= fraction < 1:
        raise ValueError(f"validation_fraction needs to lie in [0, 1); got {fraction}")
    trained = num - min(round(fraction * num), num - 1)
    order = np.arange(num)
    if config.layout != "generated":  # whose order is random already
        order = np.random.default_rng(config.seed).permutation(num)
    rows = order[:trained] if split == "train" else order[trained:]
    return tuple(images[row] for row in sorted(rows))


def ranking_images(config: ConfigDict) -> tuple[data.AnnotatedImage, ...]:
    """The images that rank checkpoints: those held out of training or, if none are, the test ones.

    Raises: as `annotated_images`.
    """
    test = annotated_images(config, "test")  # Read in any case: a mistake is told before training.
    held_out = (
        annotated_images(config, "validation") if config.get("validation_fraction", 0) else ()
    )
    return held_out or test


def coloured(
    images: tuple[data.AnnotatedImage, ...], layout: str, task: Task
) -> tuple[data.AnnotatedImage, ...]:
    """Normalises pictures that come with the library. Raises: ValueError for other channels."""
    if task.options.num_channels != 3:
        raise ValueError(
            f"layout {layout!r} has 3 channels; got num_channels={task.options.num_channels}"
        )
    kind = task.options.normalisation
    return tuple(one._replace(image=normalised(one.name, one.image, kind)) for one in images)


def training_source(config: ConfigDict) -> OfflineSource:
    """Random pieces of the training images, augmented if asked. Raises: as `annotated_images`."""
    fields = dataclasses.fields(Augmentation)
    augmentation = Augmentation(**{field.name: config[field.name] for field in fields})
    return data.segmentation_source(
        annotated_images(config, "train"),
        config.batch_size,
        side=config.side,
        augmentation=augmentation if config.augment else None,
        appearance=appearance(config),
        encoding=TaskOptions.from_config(config).encoding,
    )
