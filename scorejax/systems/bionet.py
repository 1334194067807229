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
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data import segmentation as data
from scorejax.data import segmentation_folders, segmentation_photographs
from scorejax.data.augmentation import Augmentation
from scorejax.evaluate import segmentation, segmentation_pictures
from scorejax.evaluate.progress import Metric, Metrics, make_evaluate, remembered
from scorejax.evaluate.sliding_window import sliding_window
from scorejax.models.bionet import BiONet, keras_bionet, torch_bionet
from scorejax.models.build import DTYPES
from scorejax.objectives.segmentation import EXCLUSIVE, LOSSES
from scorejax.report import Evaluation
from scorejax.train import parallel
from scorejax.train.initial import make_init
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, OfflineSource, Params, PRNGKeyArray, Variables

DIALECTS = {"torch": torch_bionet, "keras": keras_bionet}
OBJECTIVES = {name: loss for name, loss in LOSSES.items() if name not in EXCLUSIVE}
"""There is one class: what is segmented, against all else."""
SCORES = ("iou", "dice", "precision", "recall", "aji", "pq", "sq", "rq")
SPLITS = {"train": "", "test": "test_"}
NUM_OVERLAYS = 3

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


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError for impossible values, or without data."""
    require_keys(config, KEYS)
    model = make_model(config)
    return System(
        init=make_init(model.network, np.ones((1, config.side, config.side, 3), np.float32)),
        loss=model.loss,
        tx=model.tx,
        source=training_source(config),
        evaluate=make_evaluate(
            model.metrics(), config.best_metric, unranked=("published", "overlays")
        ),
        paths=("data_dir", "test_data_dir"),
    )


def make_model(config: ConfigDict) -> "Segmentation":
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, (key for key in KEYS if key != "masks"))  # which older runs lack
    require(config, ("threshold",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    require(config, ("min_distance",), lambda v: v >= 1, "to be at least 1")
    return Segmentation(
        test_images=functools.partial(annotated_images, config, "test"),
        network=build_network(config),
        objective=choose("objective", config.objective, OBJECTIVES),
        tx=optimizer(config),
        window=window_options(config),
        threshold=config.threshold,
        min_distance=config.min_distance,
        batch_size=config.batch_size,
    )


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
    masks = config.get("masks", "regions")  # Runs that lack the key were started with regions.
    require_known("masks", masks, segmentation_folders.MASKS)
    require(config, (f"{prefix}num_images",), lambda v: v >= 0, "to be at least 0, which is all")
    if layout == "generated":
        require(config, (f"{prefix}num_images",), lambda v: v >= 1, "to be at least 1")
        # Two streams: no picture of one split is in the other.
        images = data.generated(count, config.image_side, seed=2 * config.seed + bool(prefix))
    elif layout in segmentation_photographs.PHOTOGRAPHS:
        images = (segmentation_photographs.photograph(layout, split),)
    else:
        folder = config[f"{prefix}data_dir"]
        if not folder:
            raise ValueError(f"{prefix}layout {layout!r} needs {prefix}data_dir, a folder")
        reading = segmentation_folders.read(folder, layout, masks=masks, damaged=config.damaged)
        for line in reading.skipped:
            print(f"left out: {line}", file=sys.stderr, flush=True)
        images = reading.annotated
    images = images[:count] if count else images
    if config.corner_patches:
        images = tuple(p for image in images for p in data.corner_patches(image, config.side))
    return images


def training_source(config: ConfigDict) -> OfflineSource:
    """Random pieces of the training images, augmented if asked. Raises: as `annotated_images`."""
    fields = dataclasses.fields(Augmentation)
    augmentation = Augmentation(**{field.name: config[field.name] for field in fields})
    return data.segmentation_source(
        annotated_images(config, "train"),
        config.batch_size,
        side=config.side,
        augmentation=augmentation if config.augment else None,
    )


class Segmented(NamedTuple):
    """A segmented image: probability (h, w) in [0, 1], and instances (h, w), 0 for none."""

    probability: np.ndarray
    instances: np.ndarray


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A network that segments images, its training and its evaluation."""

    test_images: Callable[[], tuple[data.AnnotatedImage, ...]]
    """Reads the test images with their instances."""
    network: BiONet
    objective: Callable[[Array, Array], Array]
    """(logits, mask) -> (b,)."""
    tx: optax.GradientTransformation
    window: dict[str, int]
    threshold: float
    min_distance: int
    """Pixels between the centres of two instances."""
    batch_size: int
    """Images that the published scores take together."""

    def loss(
        self, params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        """The mean objective of a batch, in which running statistics move."""
        del rng  # Nothing is drawn.
        variables, x, mask = {"params": params, **state.model_state}, batch["image"], batch["mask"]
        logits, moved = self.network.apply(variables, x, train=True, mutable=["batch_stats"])
        accuracy = jnp.mean((logits > 0) == (mask > 0))
        value = jnp.mean(self.objective(logits, mask))
        return value, Aux({"pixel_accuracy": accuracy}, dict(moved))

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, 3

    def segmenter(self) -> Callable[[Variables, np.ndarray], Segmented]:
        """segment(variables, image (h, w, 3) uint8) -> Segmented: any size, on all devices."""

        @parallel.map_over_devices
        def probability(variables: Variables, x: Array) -> Array:
            params, model_state = variables
            return jax.nn.sigmoid(self.network.apply({"params": params, **model_state}, x))

        def segment(variables: Variables, image: np.ndarray) -> Segmented:
            predict = functools.partial(probability, variables)
            p = sliding_window(predict, image, **self.window)[..., 0]
            mask = p > self.threshold
            return Segmented(p, segmentation.separate(mask, min_distance=self.min_distance))

        return segment

    def metrics(self) -> Metrics:
        """By name: scores of the test images with 95 % intervals, published scores, overlays.

        "published" are IoU and Dice as the official code has them, of all pixels of a batch
        together: they depend on `batch_size`.
        """
        load, segment = functools.cache(self.test_images), self.segmenter()

        @remembered
        def segmented(variables: Variables) -> list[Segmented]:
            return [segment(variables, image.image) for image in load()]

        @remembered
        def intervals(variables: Variables) -> dict[str, segmentation.Interval]:
            pairs = zip(load(), segmented(variables), strict=True)
            return segmentation.summary(
                [segmentation.instance_scores(a.instances, s.instances) for a, s in pairs]
            )

        def score(name: str, rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            interval = intervals(variables)[name]
            bounds = {f"{name}_low": interval.low, f"{name}_high": interval.high}
            return Evaluation({name: interval.mean} | bounds, {})

        def published(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            batches, images, predicted = [], load(), segmented(variables)
            for start in range(0, len(images), self.batch_size):
                batch = slice(start, start + self.batch_size)
                truth = np.concatenate([image.mask.ravel() for image in images[batch]])
                p = np.concatenate([one.probability.ravel() for one in predicted[batch]])
                scores = segmentation.batch_iou_and_dice(truth, p, threshold=self.threshold)
                batches.append(scores)
            iou, dice = np.mean(batches, axis=0)
            return Evaluation({"published_iou": float(iou), "published_dice": float(dice)}, {})

        def overlays(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
            pairs = list(zip(load(), segmented(variables), strict=True))[:NUM_OVERLAYS]
            overlay = segmentation_pictures.overlay
            drawn = [overlay(a.image, s.instances, a.instances) for a, s in pairs]
            shown = [segmentation_pictures.with_legend(picture, truth=True) for picture in drawn]
            return Evaluation({}, {f"overlay_{i}": picture for i, picture in enumerate(shown)})

        def loaded(metric: Metric) -> Metric:
            load()
            return metric

        metrics = {name: functools.partial(score, name) for name in SCORES}
        metrics |= {"published": published, "overlays": overlays}
        return {name: functools.partial(loaded, metric) for name, metric in metrics.items()}
