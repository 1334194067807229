# SPDX-License-Identifier: Apache-2.0
"""BiO-Net: segmentation by a U-Net that runs several times through backward skip connections.

Trained on pieces of images by pixelwise cross-entropy or soft Dice, judged image by image on whole
ones: tiles of an image of any size, blended, then instances by a watershed. One pass
(`num_passes=1`) is the plain U-Net that the paper compares with.

Source: Xiang et al. 2020, arXiv:2007.00243, and its published code.
"""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data import segmentation as data
from scorejax.data import segmentation_folders, segmentation_photographs
from scorejax.data.appearance import Appearance
from scorejax.data.augmentation import Augmentation
from scorejax.data.channels import normalised
from scorejax.data.large_pictures import MAX_PIXELS
from scorejax.evaluate.progress import Metrics, make_evaluate
from scorejax.evaluate.sliding_window import sliding_window
from scorejax.evaluate.symmetries import symmetric
from scorejax.models.bionet import BiONet, keras_bionet, torch_bionet
from scorejax.models.build import DTYPES
from scorejax.systems.bionet.scores import UNRANKED, make_metrics
from scorejax.systems.bionet.task import (
    Segmented,
    Task,
    TaskOptions,
    appearance,
    choose_loss,
)
from scorejax.train import parallel
from scorejax.train.initial import make_init
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, OfflineSource, Params, PRNGKeyArray, Variables

DIALECTS = {"torch": torch_bionet, "keras": keras_bionet}
SPLITS = {"train": "", "test": "test_"}

NETWORK_OPTIONS = (
    "dialect", "multiplier", "num_levels", "num_passes", "integrate", "num_backward_skips",
    "norm_momentum", "dtype", "remat",
)  # fmt: skip
DATA_OPTIONS = (
    "layout", "data_dir", "num_images", "test_layout", "test_data_dir", "test_num_images",
    "image_side", "corner_patches", "masks", "damaged", "side", "augment",
    *(field.name for field in dataclasses.fields(Augmentation)),
)  # fmt: skip
WINDOW_OPTIONS = ("tile", "overlap", "margin", "tile_batch")
KEYS = (
    *DATA_OPTIONS, *NETWORK_OPTIONS, *WINDOW_OPTIONS, "objective", "learning_rate",
    "learning_rate_decay", "threshold", "min_distance",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = tuple(
    field.name for kind in (TaskOptions, Appearance) for field in dataclasses.fields(kind)
)
"""Keys that a config may lack, as older runs do."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError for impossible values, or without data."""
    require_keys(config, KEYS)
    model = make_model(config)
    example = np.ones((1, config.side, config.side, model.task.options.num_channels), np.float32)
    return System(
        init=make_init(model.network, example),
        loss=model.loss,
        tx=model.tx,
        source=training_source(config),
        evaluate=make_evaluate(model.metrics(), config.best_metric, unranked=UNRANKED),
        paths=("data_dir", "test_data_dir"),
    )


def make_model(config: ConfigDict) -> "Segmentation":
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, (key for key in KEYS if key != "masks"))  # which older runs lack
    require(config, ("threshold",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    require(config, ("min_distance",), lambda v: v >= 1, "to be at least 1")
    task = build_task(config)
    return Segmentation(
        test_images=functools.partial(annotated_images, config, "test"),
        network=build_network(config),
        task=task,
        tx=optimizer(config),
        window=window_options(config),
        batch_size=config.batch_size,
    )


def build_task(config: ConfigDict) -> Task:
    """The task of the network of a config. Raises: ValueError for an impossible value."""
    options = TaskOptions.from_config(config)
    masks = config.get("masks", "regions")  # Runs that lack the key were started with regions.
    require_known("masks", masks, segmentation_folders.MASKS)
    if (masks == "classes") != (options.num_classes > 1):
        raise ValueError(
            f"masks='classes' and num_classes of more than 1 need each other; got masks={masks!r}, "
            f"num_classes={options.num_classes}"
        )
    loss = choose_loss(config.objective, options)
    return Task(options, loss, config.threshold, config.min_distance)


def build_network(config: ConfigDict) -> BiONet:
    """The network of a config.

    Raises: ValueError for an impossible network, or pieces or tiles that it cannot halve.
    """
    require(config, ("num_levels", "num_passes"), lambda v: v >= 1, "to be at least 1")
    require(config, ("multiplier",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("norm_momentum",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    levels, fed = config.num_levels, config.num_backward_skips
    multiple = 2 ** (levels + 1)
    if not 0 <= fed <= levels:
        raise ValueError(f"num_backward_skips needs to lie in [0, {levels}]; got {fed}")
    for name in ("side", "tile"):
        if config[name] < 1 or config[name] % multiple:
            raise ValueError(
                f"num_levels={levels} needs {name} to be a multiple of {multiple}; got "
                f"{config[name]}"
            )
    options: dict[str, Any] = {key: config[key] for key in ("num_passes", "integrate", "remat")}
    options["backward_levels"] = tuple(range(levels - fed, levels))
    options["dtype"] = choose("dtype", config.dtype, DTYPES)
    options["num_classes"] = TaskOptions.from_config(config).encoding.num_masks
    dialect = choose("dialect", config.dialect, DIALECTS)
    network = dialect(multiplier=config.multiplier, num_levels=levels, **options)
    return network.clone(dialect=network.dialect._replace(momentum=config.norm_momentum))


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam, whose rate is divided by 1 + decay * updates. Raises: ValueError."""
    require(config, ("learning_rate_decay",), lambda v: 0 <= v < math.inf, "to be at least 0")
    fall = lambda count: 1 / (1 + config.learning_rate_decay * count)
    return optax.chain(adam(config.learning_rate), optax.scale_by_schedule(fall))


def window_options(config: ConfigDict) -> dict[str, int]:
    """Options of `sliding_window`. Raises: ValueError for tiles that do not cover an image."""
    require(config, ("tile_batch",), lambda v: v >= 1, "to be at least 1")
    tile, overlap, margin = config.tile, config.overlap, config.margin
    multiple = 2 ** (config.num_levels + 1)
    if margin < 0 or not 2 * margin < overlap <= tile - multiple:
        raise ValueError(
            f"tiles need 0 <= 2 margin < overlap <= tile - {multiple}; got margin={margin}, "
            f"overlap={overlap}, tile={tile}"
        )
    sizes = {"tile": tile, "overlap": overlap, "margin": margin, "multiple": multiple}
    return sizes | {"batch_size": config.tile_batch}


def annotated_images(config: ConfigDict, split: str) -> tuple[data.AnnotatedImage, ...]:
    """The images of a split, "train" or "test", with their instances.

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
        images = (segmentation_photographs.photograph(layout, split),)
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
        for line in reading.skipped:
            print(f"left out: {line}", file=sys.stderr, flush=True)
        images = reading.annotated
    if layout not in segmentation_folders.LAYOUTS:
        images = coloured(images, layout, task)
    images = images[:count] if count else images
    if config.corner_patches:
        images = tuple(p for image in images for p in data.corner_patches(image, config.side))
    return images


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


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A network that segments images, its training and its evaluation."""

    test_images: Callable[[], tuple[data.AnnotatedImage, ...]]
    """Reads the test images with their instances."""
    network: BiONet
    task: Task
    tx: optax.GradientTransformation
    window: dict[str, int]
    batch_size: int
    """Images that the published scores take together."""

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """The mean objective of a batch, in which running statistics move."""
        del rng  # Nothing is drawn.
        variables, x = {"params": params, **state.model_state}, batch["image"]
        logits, moved = self.network.apply(variables, x, train=True, mutable=["batch_stats"])
        value = jnp.mean(self.task.loss(logits, batch))
        return value, Aux({"pixel_accuracy": self.task.accuracy(logits, batch)}, dict(moved))

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, self.task.options.num_channels

    def load_picture(self, path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """A picture (h, w, c) as `segmenter` takes it. Raises: ValueError, one line."""
        return self.task.load(path, max_pixels=max_pixels)

    def segmenter(self) -> Callable[[Variables, np.ndarray], Segmented]:
        """segment(variables, image (h, w, c)) -> Segmented: any size, on all devices."""

        num_symmetries = self.task.options.eval_symmetries

        @parallel.map_over_devices
        def probability(variables: Variables, x: Array) -> Array:
            params, model_state = variables
            return self.task.probability(self.network.apply({"params": params, **model_state}, x))

        def segment(variables: Variables, image: np.ndarray) -> Segmented:
            predict = symmetric(functools.partial(probability, variables), num_symmetries)
            return self.task.segmented(sliding_window(predict, image, **self.window))

        return segment

    def metrics(self) -> Metrics:
        """By name: scores of the test images with 95 % intervals, and overlays; `make_metrics`."""
        return make_metrics(self.test_images, self.segmenter(), self.task, self.batch_size)
