# SPDX-License-Identifier: Apache-2.0
"""The task of a segmentation network: what its outputs are, how they are trained and read."""

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_known
from scorejax.data import segmentation_folders
from scorejax.data.appearance import Appearance
from scorejax.data.channels import NORMALISATIONS, load_channels, normalised
from scorejax.data.large_pictures import MAX_PIXELS
from scorejax.data.picture_files import IGNORED, load_image
from scorejax.data.segmentation_targets import Encoding, class_regions
from scorejax.evaluate import segmentation
from scorejax.evaluate.symmetries import NUMBERS
from scorejax.objectives.segmentation import EXCLUSIVE, LOSSES, SegmentationLoss
from scorejax.typing import Array, Batch

MOST_CLASSES = 256
"""As many as the levels of an 8-bit mask."""
LOSS_OPTIONS = {
    "focal": {"focal_gamma": "gamma"},
    "tversky": {"tversky_alpha": "alpha", "tversky_beta": "beta"},
}
"""Keys of a config, and the arguments of the losses whose name ends so."""
OVERLAPS = ("dice", "tversky")
"""Losses of one class in which the background has no part."""


class Segmented(NamedTuple):
    """A segmented image: probabilities in [0, 1], and instances (h, w), 0 for none.

    Probabilities are (h, w) of the foreground, or (h, w, k) of several classes, whose instances are
    the connected regions of a class.
    """

    probability: np.ndarray
    instances: np.ndarray
    classes: np.ndarray | None = None
    """Most probable of several classes (h, w)."""


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """Keys that a config may lack: older runs have one class, RGB pictures and no contacts.

    Raises: ValueError for an impossible value.
    """

    num_classes: int = 1
    """1: a foreground. More: classes that exclude each other; class 0 is the background."""
    ignore_label: int = IGNORED
    """Level of masks whose pixels count in no loss and no score; none by default."""
    class_weights: tuple[float, ...] = ()
    """Weights in the loss: of the background, of each class, and last of contacts; () is equal."""
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3
    """Weight of surplus pixels in the Tversky loss."""
    tversky_beta: float = 0.7
    """Weight of missed pixels."""
    contact_width: int = 0
    """Pixels on either side of contacts of instances, which are predicted too; 0: none are."""
    num_channels: int = 3
    normalisation: str = "levels"
    """See `data.channels.NORMALISATIONS`."""
    eval_symmetries: int = 1
    """Flips and turns of each tile over which probabilities are averaged: 1, 4 or 8."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the options that a config has; the others keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in config]
        values = {name: config[name] for name in names}
        return cls(**values | {"class_weights": tuple(config.get("class_weights", ()))})

    def __post_init__(self) -> None:
        values, num = vars(self), len(self.class_weights)
        at_most = f"to lie in [1, {MOST_CLASSES}]"
        require(values, ("num_classes",), lambda v: 1 <= v <= MOST_CLASSES, at_most)
        require(values, ("num_channels",), lambda v: v >= 1, "to be at least 1")
        for name in ("focal_gamma", "tversky_alpha", "tversky_beta"):
            require(values, (name,), lambda v: 0 <= v < math.inf, "to be at least 0")
        require(values, ("eval_symmetries",), lambda v: v in NUMBERS, "to be 1, 4 or 8")
        require_known("normalisation", self.normalisation, NORMALISATIONS)
        needed = self.encoding.num_masks + (self.num_classes == 1)
        positive = all(0 <= weight < math.inf for weight in self.class_weights)
        if num not in (0, needed) or not positive or (num and not any(self.class_weights[1:])):
            raise ValueError(
                f"class_weights needs {needed} numbers of at least 0, first that of the "
                f"background, or none; got {self.class_weights}"
            )

    @property
    def encoding(self) -> Encoding:
        """Targets of the network."""
        return Encoding(self.num_classes, self.contact_width, self.ignore_label != IGNORED)


def appearance(config: Mapping[str, Any]) -> Appearance:
    """Changes of colour, sharpness and noise; none for the keys that a config lacks."""
    names = [field.name for field in dataclasses.fields(Appearance) if field.name in config]
    return Appearance(**{name: config[name] for name in names})


def choose_loss(name: str, options: TaskOptions) -> SegmentationLoss:
    """The loss of a name with its numbers.

    Raises: ValueError for an unknown one, one for classes of the other kind, or weights that would
    have no effect.
    """
    exclusive = options.num_classes > 1
    losses = {key: loss for key, loss in LOSSES.items() if (key in EXCLUSIVE) == exclusive}
    loss = choose("objective", name, losses)
    if options.class_weights and name in OVERLAPS and options.encoding.num_masks == 1:
        raise ValueError(f"class_weights has no effect on objective {name!r} of one class")
    for ending, arguments in LOSS_OPTIONS.items():
        if name.endswith(ending):
            values = {argument: getattr(options, key) for key, argument in arguments.items()}
            loss = functools.partial(loss, **values)
    return loss


@dataclasses.dataclass(frozen=True)
class Task:
    """Meaning of the outputs (b, h, w, k) of a network."""

    options: TaskOptions
    objective: SegmentationLoss
    threshold: float
    min_distance: int
    """Pixels between the centres of two instances."""

    @property
    def encoding(self) -> Encoding:
        """Targets of the network."""
        return self.options.encoding

    def loss(self, logits: Array, batch: Batch) -> Array:
        """The objective (b,) of a batch."""
        weights = self.options.class_weights
        given = {"class_weights": jnp.asarray(weights, logits.dtype)} if weights else {}
        return self.objective(logits, batch["mask"], known=batch.get("known"), **given)

    def accuracy(self, logits: Array, batch: Batch) -> Array:
        """Share of the pixels whose class is predicted right; of all masks if they overlap."""
        if self.options.num_classes > 1:
            right = jnp.argmax(logits, axis=-1) == jnp.argmax(batch["mask"], axis=-1)
        else:
            right = (logits > 0) == (batch["mask"] > 0)
        known = batch.get("known")
        if known is None:
            return jnp.mean(right)
        weights = jnp.broadcast_to(
            known.reshape(known.shape + (1,) * (right.ndim - 3)), right.shape
        )
        return jnp.sum(weights * right) / jnp.maximum(jnp.sum(weights), 1)

    def probability(self, logits: Array) -> Array:
        """Probabilities (b, h, w, k) of the outputs."""
        return (jax.nn.softmax if self.options.num_classes > 1 else jax.nn.sigmoid)(logits)

    def segmented(self, probability: np.ndarray) -> Segmented:
        """Instances, or classes, of the probabilities (h, w, k) of an image."""
        if self.options.num_classes > 1:
            classes = probability.argmax(axis=-1).astype(np.int32)
            return Segmented(probability, class_regions(classes), classes)
        foreground = probability[..., 0]
        masks = np.moveaxis(probability > self.threshold, -1, 0)
        contacts = masks[1] if self.options.contact_width else None
        instances = segmentation.separate(
            masks[0], min_distance=self.min_distance, contacts=contacts
        )
        return Segmented(foreground, instances)

    def load(self, path: str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Reads a picture as the network takes it: uint8, or float32 that is normalised.

        Raises: ValueError, one line, if the file is damaged or has other channels.
        """
        options = self.options
        if options.num_channels == 3 and options.normalisation == "levels":
            return load_image(path, max_pixels=max_pixels)
        image = load_channels(path, options.num_channels, max_pixels=max_pixels)
        return normalised(str(path), image, options.normalisation)


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
