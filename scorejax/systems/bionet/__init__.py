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
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys
from scorejax.data import segmentation as data
from scorejax.data.appearance import Appearance
from scorejax.data.large_pictures import MAX_PIXELS
from scorejax.evaluate.progress import Metrics, make_evaluate
from scorejax.evaluate.sliding_window import sliding_window
from scorejax.evaluate.symmetries import symmetric
from scorejax.models.bionet import BiONet, keras_bionet, torch_bionet
from scorejax.models.build import DTYPES
from scorejax.systems.bionet.images import (
    DATA_OPTIONS,
    annotated_images,
    ranking_images,
    training_source,
)
from scorejax.systems.bionet.passes import PassTraining
from scorejax.systems.bionet.scores import UNRANKED, make_metrics
from scorejax.systems.bionet.task import Segmented, Task, TaskOptions, build_task
from scorejax.train import parallel
from scorejax.train.initial import make_init
from scorejax.train.optimizer import adam_from_config
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, Variables

DIALECTS = {"torch": torch_bionet, "keras": keras_bionet}

NETWORK_OPTIONS = (
    "dialect", "multiplier", "num_levels", "num_passes", "integrate", "num_backward_skips",
    "norm_momentum", "dtype", "remat",
)  # fmt: skip
WINDOW_OPTIONS = ("tile", "overlap", "margin", "tile_batch")
KEYS = (
    *DATA_OPTIONS, *NETWORK_OPTIONS, *WINDOW_OPTIONS, "objective", "learning_rate",
    "learning_rate_decay", "threshold", "min_distance",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (
    *(field.name for kind in (TaskOptions, Appearance) for field in dataclasses.fields(kind)),
    "progressive_passes", "deep_supervision", "grad_clip", "warmup", "validation_fraction",
)  # fmt: skip
"""Keys that a config may lack, as older runs do."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError for impossible values, or without data."""
    require_keys(config, KEYS)
    model = make_model(config)
    example = np.ones((1, config.side, config.side, model.task.options.num_channels), np.float32)
    (_, loss), *phases = model.passes.phases(model.loss)
    ranking = dataclasses.replace(model, test_images=functools.partial(ranking_images, config))
    return System(
        init=make_init(model.network, example),
        loss=loss,
        phases=tuple(phases),
        tx=model.tx,
        source=training_source(config),
        evaluate=make_evaluate(ranking.metrics(), config.best_metric, unranked=UNRANKED),
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
        passes=PassTraining.from_config(config),
        tx=optimizer(config),
        window=window_options(config),
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
    options["num_classes"] = TaskOptions.from_config(config).encoding.num_masks
    dialect = choose("dialect", config.dialect, DIALECTS)
    network = dialect(multiplier=config.multiplier, num_levels=levels, **options)
    return network.clone(dialect=network.dialect._replace(momentum=config.norm_momentum))


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """`adam_from_config`, whose rate is divided by 1 + decay * updates. Raises: ValueError."""
    require(config, ("learning_rate_decay",), lambda v: 0 <= v < math.inf, "to be at least 0")
    fall = lambda count: 1 / (1 + config.learning_rate_decay * count)
    return optax.chain(adam_from_config(config), optax.scale_by_schedule(fall))


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


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A network that segments images, its training and its evaluation."""

    test_images: Callable[[], tuple[data.AnnotatedImage, ...]]
    """Reads the test images with their instances."""
    network: BiONet
    task: Task
    passes: PassTraining
    tx: optax.GradientTransformation
    window: dict[str, int]
    batch_size: int
    """Images that the published scores take together."""

    def loss(
        self,
        params: Params,
        state: TrainState,
        rng: PRNGKeyArray,
        batch: Batch,
        *,
        passes: int | None = None,
    ) -> tuple[Array, Aux]:
        """The mean objective of a batch after `passes` passes, all by default; `supervised`.

        Running statistics move.
        """
        del rng  # Nothing is drawn.
        variables, x = {"params": params, **state.model_state}, batch["image"]
        logits, moved = self.network.apply(
            variables,
            x,
            train=True,
            passes=passes,
            mutable=["batch_stats"],
            method="logits_of_passes" if self.passes.deep_supervision else None,
        )
        logits = logits if self.passes.deep_supervision else [logits]
        value = self.passes.supervised([jnp.mean(self.task.loss(one, batch)) for one in logits])
        return value, Aux({"pixel_accuracy": self.task.accuracy(logits[-1], batch)}, dict(moved))

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, self.task.options.num_channels

    def load_picture(self, path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """A picture (h, w, c) as `segmenter` takes it. Raises: ValueError, one line."""
        return self.task.load(path, max_pixels=max_pixels)

    def probability(self, variables: Variables, x: Array, *, passes: int) -> Array:
        """Probabilities (b, h, w, k) of tiles (b, h, w, c) after `passes` passes."""
        params, model_state = variables
        logits = self.network.apply({"params": params, **model_state}, x, passes=passes)
        return self.task.probability(logits)

    def segmenter(self) -> Callable[[Variables, np.ndarray], Segmented]:
        """segment(variables, image (h, w, c)) -> Segmented: any size, on all devices."""

        num_symmetries = self.task.options.eval_symmetries

        @functools.cache
        def mapped(passes: int) -> Callable[[Variables, Array], np.ndarray]:
            return parallel.map_over_devices(functools.partial(self.probability, passes=passes))

        def segment(variables: Variables, image: np.ndarray) -> Segmented:
            probability = mapped(self.passes.trained(variables[1]))
            predict = symmetric(functools.partial(probability, variables), num_symmetries)
            return self.task.segmented(sliding_window(predict, image, **self.window))

        return segment

    def metrics(self) -> Metrics:
        """By name: scores of the test images with 95 % intervals, and overlays; `make_metrics`."""
        return make_metrics(self.test_images, self.segmenter(), self.task, self.batch_size)
