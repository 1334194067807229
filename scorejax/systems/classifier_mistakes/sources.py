# SPDX-License-Identifier: Apache-2.0
"""Images on which a classifier fails, or should not be asked, each beside normal ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.attacks.adaptive import adaptive, feature_matching, nearest_of_another_class
from scorejax.attacks.ball import Adversarial, Ball, equal_norm_noise
from scorejax.attacks.carlini_wagner import carlini_wagner
from scorejax.attacks.deepfool import deepfool
from scorejax.attacks.gradient import fgsm, pgd
from scorejax.data.photographs import textures
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.foreign_images import clothes
from scorejax.random import row_keys, split
from scorejax.typing import Array, Batch, Variables

AT_ONCE = 64
"""Images that are attacked together."""
DEPENDENT = ("turned", "photographs")
"""Sources out of distribution whose images are made from others, or share a picture."""


class Victims(NamedTuple):
    """Test images that the classifier gets right, in [0, 1], and their labels."""

    image: np.ndarray
    label: np.ndarray
    target: np.ndarray
    """Features of a natural image of another class, for feature matching."""


class Source(NamedTuple):
    """Failures, and the normal images that they are told from."""

    failures: np.ndarray
    normal: np.ndarray
    independent: bool = True
    """Whether no image is made from another, nor from the same picture: intervals assume it."""
    success: float | None = None
    """Share of attacks that succeed, the adaptive one unnoticed."""


class AttackOptions(NamedTuple):
    """The ball of the attacks, their steps, and the score that the adaptive attack raises."""

    ball: Ball
    num_steps: int
    num_restarts: int
    threshold: float
    """Of the score, below which a row is flagged."""


class Detected(NamedTuple):
    """Outputs of a classifier and a detector for images, differentiable."""

    logits: Array
    score: Array
    """The detector's score; a high one means normal."""
    features: Array
    """The features that the density sees."""


ClassifyFn = Callable[[Variables, Array], Detected]
"""(variables, images) -> Detected."""
Attack = Callable[[Any, Callable, Batch, AttackOptions], Adversarial]
"""(rngs, images -> Detected, victims by field, options) -> attacked images."""


def _logits(detected: Callable) -> Callable:
    return lambda x: detected(x).logits


def _adaptive(rng: Any, detected: Callable, rows: Batch, o: AttackOptions) -> Adversarial:
    return adaptive(
        rng, lambda x: (detected(x).logits, detected(x).score), rows["image"], rows["label"],
        ball=o.ball, threshold=o.threshold, num_steps=o.num_steps, num_restarts=o.num_restarts,
    )  # fmt: skip


def _feature_matching(rng: Any, detected: Callable, rows: Batch, o: AttackOptions) -> Adversarial:
    return feature_matching(
        rng, lambda x: (detected(x).logits, detected(x).features), rows["image"], rows["label"],
        rows["target"], ball=o.ball, num_steps=o.num_steps, num_restarts=o.num_restarts,
    )  # fmt: skip


ATTACKS: dict[str, Attack] = {
    "adaptive": _adaptive,
    "feature_matching": _feature_matching,
    "pgd": lambda rng, detected, rows, o: pgd(
        rng, _logits(detected), rows["image"], rows["label"], ball=o.ball,
        num_steps=o.num_steps, num_restarts=o.num_restarts,
    ),
    "fgsm": lambda rng, detected, rows, o: fgsm(
        _logits(detected), rows["image"], rows["label"], ball=o.ball
    ),
    "deepfool": lambda rng, detected, rows, o: deepfool(
        _logits(detected), rows["image"], rows["label"]
    ),
    "carlini_wagner": lambda rng, detected, rows, o: carlini_wagner(
        _logits(detected), rows["image"], rows["label"], num_steps=5 * o.num_steps
    ),
}  # fmt: skip
"""By name; those that know of the detector or of its features come first."""


def attacked(
    attack: str,
    classify: ClassifyFn,
    variables: Variables,
    victims: Victims,
    options: AttackOptions,
) -> Source:
    """Successful attacks, beside their clean images and those with noise of the same norm.

    Noisy images that the classifier gets wrong are no normal images, and are left out.
    """

    def run(variables: Variables, rows: Batch) -> dict[str, Array]:
        attack_rng, noise_rng = split(rows["rng"])
        detected = lambda x: classify(variables, x)
        found = ATTACKS[attack](attack_rng, detected, rows, options)
        noise = equal_norm_noise(noise_rng, rows["image"], found.x)
        right = jnp.argmax(classify(variables, noise).logits, axis=1) == rows["label"]
        return {"image": found.x, "success": found.success, "noise": noise, "right": right}

    rows = victims._asdict() | {"rng": row_keys(jax.random.key(0), len(victims.label))}
    found = joined(make_stream(run)(variables, rows, AT_ONCE))
    hit = found["success"]
    noisy = found["noise"][hit & found["right"]]
    normal = np.concatenate([victims.image[hit], noisy])
    return Source(found["image"][hit], normal, independent=False, success=float(hit.mean()))


def out_of_distribution(test: np.ndarray, normal: np.ndarray) -> dict[str, Source]:
    """Images in [0, 1] of no class, by name, made from the test images or from none of them.

    "photographs" are patches of two, and independent of one another no more than "turned" are of
    the test images. "clothes" are only there for images of 8 x 8 pixels with one channel. All stand
    beside `normal`.
    """
    rng = np.random.default_rng(0)
    kinds = {
        "turned": np.rot90(test, axes=(1, 2)),
        "noise": rng.random(test.shape, np.float32),
        "constant": np.broadcast_to(rng.random((len(test), 1, 1, 1), np.float32), test.shape),
        "photographs": textures(*test.shape[2:])[: len(test)].astype(np.float32) / 255,
    }
    if test.shape[1:] == (8, 8, 1):
        kinds["clothes"] = clothes().astype(np.float32) / 16
    return {
        name: Source(np.ascontiguousarray(images), normal, independent=name not in DEPENDENT)
        for name, images in kinds.items()
    }


def victims_of(
    images: np.ndarray,
    label: np.ndarray,
    logits: np.ndarray,
    features: np.ndarray,
    pool: tuple[np.ndarray, np.ndarray, np.ndarray],
    num: int,
) -> Victims:
    """The first `num` images that are classified as their labels.

    `pool` has features, logits and labels of natural images. Each victim's target is the nearest of
    those that are classified as their labels, and of another class: at that of a mistake the
    classifier may well be right. Raises: ValueError if they have not two classes.
    """
    right = np.flatnonzero(logits.argmax(axis=1) == label)[:num]
    image, label, features = map(jnp.asarray, (images[right], label[right], features[right]))
    pool_features, pool_logits, pool_label = pool
    natural = pool_logits.argmax(axis=1) == pool_label
    if len(np.unique(pool_label[natural])) < 2:
        raise ValueError(
            "attacks on features need natural images of two classes that the classifier gets "
            f"right; got {natural.sum()} images of {len(np.unique(pool_label[natural]))} classes"
        )
    others = jnp.asarray(pool_features[natural]), jnp.asarray(pool_label[natural])
    target = nearest_of_another_class(features, label, *others)
    return Victims(image, label, target)
