# SPDX-License-Identifier: Apache-2.0
"""Annotated images, and the batches that a segmentation network is trained on.

An annotated image holds instances numbered from 1; its mask is the union of the instances. Batches
are random crops with random augmentation, and are a function of the seed and the step alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32, PRNGKeyArray, UInt8

from scorejax.data.augmentation import Augmentation, augment
from scorejax.data.nuclei import nuclei
from scorejax.data.source import shuffled_rows
from scorejax.data.transforms import to_unit
from scorejax.typing import Batch, OfflineSource


class AnnotatedImage(NamedTuple):
    """An image (h, w, 3) as uint8, its instances (h, w) as int32, 0 for background, and a name."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    instances: Int32[np.ndarray, "h w"]

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """True inside any instance."""
        return self.instances > 0


def generated(num: int, size: int, seed: int) -> tuple[AnnotatedImage, ...]:
    """Generates `num` images of nuclei with exact instances; see `data/nuclei.py`."""
    pairs = zip(*nuclei(num, size, seed), strict=True)
    return tuple(
        AnnotatedImage(f"nuclei-{seed}-{index}", image, instances)
        for index, (image, instances) in enumerate(pairs)
    )


def segmentation_source(
    annotated: Sequence[AnnotatedImage],
    batch_size: int,
    *,
    side: int,
    augmentation: Augmentation | None = None,
) -> OfflineSource:
    """Batches {"image": (b, side, side, 3) in [0, 1], "mask": (b, side, side, 1) of 0 and 1}.

    Both arrays are float32. Each epoch visits every image once, in a new random order; an example
    is a random square crop of the image, then augmented. `batch_size` counts the examples of all
    processes. Raises: ValueError if there is no image, or one smaller than `side`.
    """
    require_side(annotated, side)

    def init(start_step: int, rng: PRNGKeyArray) -> _Carry:
        seed = tuple(int(word) for word in np.asarray(jax.random.key_data(rng)).ravel())
        return _Carry(start_step, seed, shuffled_rows(len(annotated), batch_size, seed, start_step))

    def next_batch(carry: _Carry, state: Any, rng: PRNGKeyArray) -> tuple[_Carry, Batch]:
        del state, rng  # The key of `init` and the step decide everything.
        # Orders of epochs are drawn from (*seed, 0, epoch), so 1 starts another stream.
        generator = np.random.default_rng((*carry.seed, 1, carry.step, jax.process_index()))
        pieces = []
        for row in next(carry.rows):
            image, mask = random_piece(generator, annotated[row], side)
            pieces.append(
                augment(generator, image, mask, augmentation) if augmentation else (image, mask)
            )
        return carry._replace(step=carry.step + 1), as_batch(*zip(*pieces, strict=True))

    return OfflineSource(init, next_batch, len(annotated))


class _Carry(NamedTuple):
    step: int
    seed: tuple[int, ...]
    rows: Iterator[np.ndarray]


def as_batch(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> Batch:
    """Stacks uint8 images and boolean masks of one size into the float32 batch of a network."""
    return {
        "image": to_unit(np.stack(images)),
        "mask": np.stack(masks)[..., None].astype(np.float32),
    }


def random_piece(
    rng: np.random.Generator, annotated: AnnotatedImage, side: int
) -> tuple[UInt8[np.ndarray, "side side 3"], Bool[np.ndarray, "side side"]]:
    """Draws a random square crop of an image and of its mask."""
    height, width = annotated.instances.shape
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    window = (slice(top, top + side), slice(left, left + side))
    return annotated.image[window], annotated.mask[window]


def corner_patches(annotated: AnnotatedImage, side: int) -> tuple[AnnotatedImage, ...]:
    """Crops the four corners, as MoNuSeg's 1000 x 1000 images are cut into 512 x 512 patches.

    Patches overlap if `side` is more than half the size of the image; equal patches are returned
    once. Raises: ValueError if the image is smaller than `side`.
    """
    require_side([annotated], side)
    height, width = annotated.instances.shape
    corners = sorted({(top, left) for top in (0, height - side) for left in (0, width - side)})
    return tuple(
        AnnotatedImage(
            f"{annotated.name}@{top},{left}",
            annotated.image[top : top + side, left : left + side],
            annotated.instances[top : top + side, left : left + side],
        )
        for top, left in corners
    )


def require_side(annotated: Sequence[AnnotatedImage], side: int) -> None:
    """Raises ValueError unless there is an image and each has at least side x side pixels."""
    if not annotated:
        raise ValueError("segmentation needs at least one annotated image; got none.")
    if side < 1:
        raise ValueError(f"side needs to be at least 1 pixel; got {side}.")
    for name, image, _ in annotated:
        if min(image.shape[:2]) < side:
            raise ValueError(
                f"{name} needs at least {side} x {side} pixels; got {image.shape[0]} x "
                f"{image.shape[1]}. Choose a smaller side."
            )
