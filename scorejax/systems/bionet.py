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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data import segmentation as data
from scorejax.data import segmentation_folders, segmentation_photographs
from scorejax.data.augmentation import Augmentation
from scorejax.evaluate import progress, segmentation, segmentation_pictures
from scorejax.evaluate.sliding_window import sliding_window
from scorejax.models.bionet import BiONet, keras_bionet, torch_bionet
from scorejax.models.build import DTYPES
from scorejax.objectives.segmentation import EXCLUSIVE, LOSSES
from scorejax.report import Evaluation
from scorejax.score_model.eval_options import make_evaluate
from scorejax.systems import System, make_init
from scorejax.train import parallel
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree

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
"""What is read of a config, beside `system` and what the training loop reads."""


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, or without data."""
    require_keys(config, KEYS)
    model, found = make_network(config), metrics(config)
    return System(
        init=make_init(model, (config.side, config.side, 3)),
        loss=make_loss(config, model),
        tx=make_optimizer(config),
        source=training_source(config),
        evaluate=make_evaluate(found, config.best_metric, unranked=("published", "overlays")),
    )


def make_network(config: ConfigDict) -> BiONet:
    """Raises: ValueError for a network that cannot be, or not for pieces of this size."""
    require(config, ("num_levels", "num_passes"), lambda v: v >= 1, "to be at least 1")
    require(config, ("multiplier",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("norm_momentum",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    levels, fed = config.num_levels, config.num_backward_skips
    if not 0 <= fed <= levels:
        raise ValueError(f"num_backward_skips needs to lie in [0, {levels}]; got {fed}")
    options: dict[str, Any] = {key: config[key] for key in ("num_passes", "integrate", "remat")}
    options["backward_levels"] = tuple(range(levels - fed, levels))
    options["dtype"] = choose("dtype", config.dtype, DTYPES)
    make = choose("dialect", config.dialect, DIALECTS)
    model = make(multiplier=config.multiplier, num_levels=levels, **options)
    for name in ("side", "tile"):
        if config[name] < 1 or config[name] % _multiple(config):
            raise ValueError(
                f"num_levels={levels} needs {name} to be a multiple of {_multiple(config)}; got "
                f"{config[name]}"
            )
    return model.clone(dialect=model.dialect._replace(momentum=config.norm_momentum))


def _multiple(config: ConfigDict) -> int:
    return 2 ** (config.num_levels + 1)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam, whose rate is divided by 1 + decay * updates. Raises: ValueError."""
    require(config, ("learning_rate_decay",), lambda v: 0 <= v < math.inf, "to be at least 0")
    fall = lambda count: 1 / (1 + config.learning_rate_decay * count)
    return optax.chain(adam(config.learning_rate), optax.scale_by_schedule(fall))


def make_loss(config: ConfigDict, model: BiONet) -> Callable:
    """The objective, as a training loss in which running statistics move."""
    objective = choose("objective", config.objective, OBJECTIVES)

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        del rng  # Nothing is drawn.
        variables = {"params": params, **state.model_state}
        logits, moved = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
        right = jnp.mean((logits > 0) == (batch["mask"] > 0))
        value = jnp.mean(objective(logits, batch["mask"]))
        return value, Aux({"pixel_accuracy": right}, dict(moved))

    return loss


def annotated_images(config: ConfigDict, split: str) -> tuple[data.AnnotatedImage, ...]:
    """The images of a split with their instances; stderr names what `damaged="skip"` leaves out.

    Raises: ValueError if there are none, or for a count below 0.
    """
    prefix = choose("split", split, SPLITS)
    layout, count = config[f"{prefix}layout"], config[f"{prefix}num_images"]
    known = {"generated", *segmentation_photographs.PHOTOGRAPHS, *segmentation_folders.LAYOUTS}
    require_known(f"{prefix}layout", layout, known)
    masks = config.get("masks", "regions")  # Runs that lack the key were started with regions.
    require_known("masks", masks, segmentation_folders.MASKS)
    require(config, (f"{prefix}num_images",), lambda v: v >= 0, "to be at least 0, which is all")
    if layout == "generated":
        require(config, (f"{prefix}num_images",), lambda v: v >= 1, "to be at least 1")
        # Two streams: no picture of one split is in the other.
        found = data.generated(count, config.image_side, seed=2 * config.seed + bool(prefix))
    elif layout in segmentation_photographs.PHOTOGRAPHS:
        found = (segmentation_photographs.photograph(layout, split),)
    else:
        where = config[f"{prefix}data_dir"]
        if not where:
            raise ValueError(f"{prefix}layout {layout!r} needs {prefix}data_dir, a folder")
        reading = segmentation_folders.read(where, layout, masks=masks, damaged=config.damaged)
        for line in reading.skipped:
            print(f"left out: {line}", file=sys.stderr, flush=True)
        found = reading.annotated
    found = found[:count] if count else found
    if config.corner_patches:
        found = tuple(p for image in found for p in data.corner_patches(image, config.side))
    return found


def training_source(config: ConfigDict) -> data.BatchSource:
    """Random pieces of the training images, moved at random if asked."""
    fields = dataclasses.fields(Augmentation)
    augmentation = Augmentation(**{field.name: config[field.name] for field in fields})
    return data.segmentation_source(
        annotated_images(config, "train"),
        config.batch_size,
        side=config.side,
        augmentation=augmentation if config.augment else None,
    )


class Segmented(NamedTuple):
    """Of one image: the probability (h, w) in [0, 1], and instances (h, w), 0 for none."""

    probability: np.ndarray
    instances: np.ndarray


def segmenter(config: ConfigDict) -> Callable[[tuple[Params, PyTree], np.ndarray], Segmented]:
    """segment(variables, image (h, w, 3) uint8) -> Segmented: any size, on all local devices.

    Raises: ValueError for a network or tiles that cannot be.
    """
    model, options = make_network(config), _window_options(config)

    @parallel.map_over_devices
    def probability(variables: tuple[Params, PyTree], x: Array) -> Array:
        params, model_state = variables
        return jax.nn.sigmoid(model.apply({"params": params, **model_state}, x))

    def segment(variables: tuple[Params, PyTree], image: np.ndarray) -> Segmented:
        found = sliding_window(functools.partial(probability, variables), image, **options)[..., 0]
        mask = found > config.threshold
        return Segmented(found, segmentation.separate(mask, min_distance=config.min_distance))

    return segment


def _window_options(config: ConfigDict) -> dict[str, int]:
    require(config, ("threshold",), lambda v: 0 < v < 1, "to lie in (0, 1)")
    require(config, ("min_distance", "tile_batch"), lambda v: v >= 1, "to be at least 1")
    tile, overlap, margin, multiple = config.tile, config.overlap, config.margin, _multiple(config)
    if margin < 0 or not 2 * margin < overlap <= tile - multiple:
        raise ValueError(
            f"tiles need 0 <= 2 margin < overlap <= tile - {multiple}; got margin={margin}, "
            f"overlap={overlap}, tile={tile}"
        )
    sizes = {"tile": tile, "overlap": overlap, "margin": margin, "multiple": multiple}
    return sizes | {"batch_size": config.tile_batch}


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """By name: scores of the test images with 95 % intervals, those of the paper, and overlays.

    "published" are IoU and Dice as the official code has them, of all pixels of a batch together:
    they depend on `batch_size`.
    """
    images, segment = annotated_images(config, "test"), segmenter(config)

    @_remembered
    def segmented(variables: tuple[Params, PyTree]) -> list[Segmented]:
        return [segment(variables, image.image) for image in images]

    @_remembered
    def intervals(variables: tuple[Params, PyTree]) -> dict[str, segmentation.Interval]:
        pairs = zip(images, segmented(variables), strict=True)
        return segmentation.summary(
            [segmentation.instance_scores(a.instances, s.instances) for a, s in pairs]
        )

    def score(name: str, rng: PRNGKeyArray, variables: tuple[Params, PyTree]) -> Evaluation:
        interval = intervals(variables)[name]
        return Evaluation({name: interval.mean, f"{name}_low": interval.low,
                           f"{name}_high": interval.high}, {})  # fmt: skip

    def published(rng: PRNGKeyArray, variables: tuple[Params, PyTree]) -> Evaluation:
        return Evaluation(_published_scores(config, images, segmented(variables)), {})

    def overlays(rng: PRNGKeyArray, variables: tuple[Params, PyTree]) -> Evaluation:
        pairs = list(zip(images, segmented(variables), strict=True))[:NUM_OVERLAYS]
        drawn = [segmentation_pictures.overlay(a.image, s.instances, a.instances) for a, s in pairs]
        return Evaluation({}, {f"overlay_{i}": picture for i, picture in enumerate(drawn)})

    scores = {name: functools.partial(score, name) for name in SCORES}
    return scores | {"published": published, "overlays": overlays}


def _published_scores(
    config: ConfigDict, images: tuple[data.AnnotatedImage, ...], segmented: list[Segmented]
) -> dict[str, float]:
    size, pairs = config.batch_size, []
    for start in range(0, len(images), size):
        batch = slice(start, start + size)
        truth = np.concatenate([image.mask.ravel() for image in images[batch]])
        found = np.concatenate([one.probability.ravel() for one in segmented[batch]])
        pairs.append(segmentation.batch_iou_and_dice(truth, found, threshold=config.threshold))
    iou, dice = np.mean(pairs, axis=0)
    return {"published_iou": float(iou), "published_dice": float(dice)}


def _remembered(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """fn, whose answer for the last argument is kept: every score is of one segmentation."""
    last: list[Any] = []

    def call(argument: Any) -> Any:
        if not last or last[0] is not argument:
            last[:] = [argument, fn(argument)]
        return last[1]

    return call
