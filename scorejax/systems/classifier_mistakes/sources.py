# SPDX-License-Identifier: Apache-2.0
"""Images on which a classifier fails, or should not be asked, each beside normal ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.attacks.adaptive import adaptive
from scorejax.attacks.ball import Adversarial, Ball, equal_norm_noise
from scorejax.attacks.carlini_wagner import carlini_wagner
from scorejax.attacks.deepfool import deepfool
from scorejax.attacks.gradient import fgsm, pgd
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.evaluate.foreign_images import clothes
from scorejax.random import row_keys, split
from scorejax.typing import Array, Batch, Variables

AT_ONCE = 64
"""Images that are attacked together."""


class Victims(NamedTuple):
    """Test images that the classifier gets right, in [0, 1], and their labels."""

    image: np.ndarray
    label: np.ndarray


class Source(NamedTuple):
    """Failures, and the normal images that they are told from."""

    failures: np.ndarray
    normal: np.ndarray
    independent: bool = True
    """Whether no image of one is made from an image of the other: intervals assume it."""
    success: float | None = None
    """Share of attacks that succeed, the adaptive one unnoticed."""


class AttackOptions(NamedTuple):
    """The ball of the attacks, their steps, and the score that the adaptive attack raises."""

    ball: Ball
    num_steps: int
    num_restarts: int
    threshold: float
    """Of the score, below which a row is flagged."""


ClassifyFn = Callable[[Variables, Array], tuple[Array, Array]]
"""(variables, images) -> logits and the detector's score, differentiable."""
Attack = Callable[[Any, Callable, Array, Array, AttackOptions], Adversarial]
"""(rngs, x -> (logits, score), images, labels, options) -> attacked images."""


def _logits(detected: Callable) -> Callable:
    return lambda x: detected(x)[0]


ATTACKS: dict[str, Attack] = {
    "adaptive": lambda rng, detected, x, label, o: adaptive(
        rng, detected, x, label, ball=o.ball, threshold=o.threshold,
        num_steps=o.num_steps, num_restarts=o.num_restarts,
    ),
    "pgd": lambda rng, detected, x, label, o: pgd(
        rng, _logits(detected), x, label, ball=o.ball, num_steps=o.num_steps,
        num_restarts=o.num_restarts,
    ),
    "fgsm": lambda rng, detected, x, label, o: fgsm(_logits(detected), x, label, ball=o.ball),
    "deepfool": lambda rng, detected, x, label, o: deepfool(_logits(detected), x, label),
    "carlini_wagner": lambda rng, detected, x, label, o: carlini_wagner(
        _logits(detected), x, label, num_steps=5 * o.num_steps
    ),
}  # fmt: skip
"""By name; the one that knows of the detector comes first."""


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
        found = ATTACKS[attack](attack_rng, detected, rows["image"], rows["label"], options)
        noise = equal_norm_noise(noise_rng, rows["image"], found.x)
        right = jnp.argmax(classify(variables, noise)[0], axis=1) == rows["label"]
        return {"image": found.x, "success": found.success, "noise": noise, "right": right}

    rows = victims._asdict() | {"rng": row_keys(jax.random.key(0), len(victims.label))}
    found = joined(make_stream(run)(variables, rows, AT_ONCE))
    hit = found["success"]
    noisy = found["noise"][hit & found["right"]]
    normal = np.concatenate([victims.image[hit], noisy])
    return Source(found["image"][hit], normal, independent=False, success=float(hit.mean()))


def out_of_distribution(test: np.ndarray) -> dict[str, np.ndarray]:
    """Images in [0, 1] of no class, by name, made from the test images or from none of them.

    "clothes" are only there for images of 8 x 8 pixels with one channel.
    """
    rng = np.random.default_rng(0)
    kinds = {
        "turned": np.rot90(test, axes=(1, 2)),
        "noise": rng.random(test.shape, np.float32),
        "constant": np.broadcast_to(rng.random((len(test), 1, 1, 1), np.float32), test.shape),
    }
    if test.shape[1:] == (8, 8, 1):
        kinds["clothes"] = clothes().astype(np.float32) / 16
    return {name: np.ascontiguousarray(images) for name, images in kinds.items()}


def victims_of(images: np.ndarray, label: np.ndarray, logits: np.ndarray, num: int) -> Victims:
    """The first `num` images that are classified as their labels."""
    right = np.flatnonzero(logits.argmax(axis=1) == label)[:num]
    return Victims(jnp.asarray(images[right]), jnp.asarray(label[right]))
