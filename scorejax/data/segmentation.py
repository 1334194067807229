# SPDX-License-Identifier: Apache-2.0
"""Annotated images, and the batches that a segmentation network is trained on.

An annotated image holds instances numbered from 1, or classes; its mask is the union of the
instances. Batches are random crops with random augmentation, and are a function of the seed and the
step alone.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int32, PRNGKeyArray, UInt8

from scorejax.data.appearance import Appearance, vary
from scorejax.data.augmentation import Augmentation, augment
from scorejax.data.nuclei import nuclei, nuclei_in_focus
from scorejax.data.picture_files import IGNORED
from scorejax.data.segmentation_targets import Encoding, class_regions
from scorejax.data.source import shuffled_rows
from scorejax.data.transforms import to_unit
from scorejax.typing import Batch, OfflineSource

Pixels = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
"""Stored pixels, or those that a network takes."""

FOREGROUND = Encoding()


class AnnotatedImage(NamedTuple):
    """An image (h, w, c), its instances (h, w) as int32, 0 for background, and a name."""

    name: str
    image: Pixels
    instances: Int32[np.ndarray, "h w"]
    classes: Int32[np.ndarray, "h w"] | None = None
    """Class of each pixel, 0 for background, or IGNORED; None: 1 inside any instance."""

    @classmethod
    def of_classes(cls, name: str, image: np.ndarray, classes: np.ndarray) -> "AnnotatedImage":
        """The connected regions of each class are the instances."""
        return cls(name, image, class_regions(classes), classes)

    @classmethod
    def of_instances(cls, name: str, image: np.ndarray, numbers: np.ndarray) -> "AnnotatedImage":
        """Instances by number, of which some pixels may be IGNORED."""
        classes = None if numbers.min() >= 0 else numbers.clip(IGNORED, 1).astype(np.int32)
        return cls(name, image, np.maximum(numbers, 0), classes)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """True inside any instance."""
        return self.instances > 0

    @property
    def known(self) -> Bool[np.ndarray, "h w"]:
        """False where pixels count in no score."""
        return np.ones(self.mask.shape, bool) if self.classes is None else self.classes != IGNORED

    def labels(self, encoding: Encoding) -> Int32[np.ndarray, "h w"]:
        """Numbers that an encoding takes: classes, or instances for their contacts."""
        if encoding.contact_width:
            return np.where(self.known, self.instances, IGNORED).astype(np.int32)
        return self.mask.astype(np.int32) if self.classes is None else self.classes

    def cut(self, top: int, left: int, side: int) -> "AnnotatedImage":
        """A square part, of the same name."""
        part = (slice(top, top + side), slice(left, left + side))
        pixels = [None if whole is None else whole[part] for whole in self[1:]]
        return AnnotatedImage(self.name, *pixels)


def generated(
    num: int, size: int, seed: int, *, num_classes: int = 1
) -> tuple[AnnotatedImage, ...]:
    """Generates `num` images of nuclei with exact instances; see `data/nuclei.py`.

    Of three classes 1 is the nuclei in focus, 2 those out of focus. Raises: ValueError for others.
    """
    if num_classes not in (1, 3):
        raise ValueError(f"generated images need num_classes to be 1 or 3; got {num_classes}")
    drawn = nuclei(num, size, seed) if num_classes == 1 else nuclei_in_focus(num, size, seed)
    return tuple(
        AnnotatedImage(f"nuclei-{seed}-{index}", *parts)
        for index, parts in enumerate(zip(*drawn, strict=True))
    )


def segmentation_source(
    annotated: Sequence[AnnotatedImage],
    batch_size: int,
    *,
    side: int,
    augmentation: Augmentation | None = None,
    appearance: Appearance | None = None,
    encoding: Encoding = FOREGROUND,
) -> OfflineSource:
    """Batches {"image": (b, side, side, c), "mask": (b, side, side, k) of 0 and 1}, float32.

    Images stored as uint8 are mapped to [0, 1]. Each epoch visits every image once, in a new random
    order; an example is a random square crop of the image, then augmented: moved, and then changed
    in its `appearance`. See `Encoding` for the mask, and for the pixels that are "known".
    `batch_size` counts the examples of all processes.
    Raises: ValueError if there is no image, or one smaller than `side`.
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
            piece = random_piece(generator, annotated[row], side, encoding)
            pieces.append(augment(generator, *piece, augmentation) if augmentation else piece)
        images, labels = map(np.stack, zip(*pieces, strict=True))
        images = to_unit(images) if images.dtype == np.uint8 else images
        if appearance is not None and appearance.changes:
            images = np.stack([vary(generator, image, appearance) for image in images])
        batch = {"image": images, **encoding(labels)}
        return carry._replace(step=carry.step + 1), batch

    return OfflineSource(init, next_batch, len(annotated))


class _Carry(NamedTuple):
    step: int
    seed: tuple[int, ...]
    rows: Iterator[np.ndarray]


def random_piece(
    rng: np.random.Generator, annotated: AnnotatedImage, side: int, encoding: Encoding
) -> tuple[Pixels, Int32[np.ndarray, "side side"]]:
    """Draws a random square crop of an image and of its labels."""
    height, width = annotated.instances.shape
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    piece = annotated.cut(top, left, side)
    return piece.image, piece.labels(encoding)


def corner_patches(annotated: AnnotatedImage, side: int) -> tuple[AnnotatedImage, ...]:
    """Crops the four corners, as MoNuSeg's 1000 x 1000 images are cut into 512 x 512 patches.

    Patches overlap if `side` is more than half the size of the image; equal patches are returned
    once. Raises: ValueError if the image is smaller than `side`.
    """
    require_side([annotated], side)
    height, width = annotated.instances.shape
    corners = sorted({(top, left) for top in (0, height - side) for left in (0, width - side)})
    return tuple(
        annotated.cut(top, left, side)._replace(name=f"{annotated.name}@{top},{left}")
        for top, left in corners
    )


def require_side(annotated: Sequence[AnnotatedImage], side: int) -> None:
    """Raises ValueError unless there is an image and each has at least side x side pixels."""
    if not annotated:
        raise ValueError("segmentation needs at least one annotated image; got none.")
    if side < 1:
        raise ValueError(f"side needs to be at least 1 pixel; got {side}.")
    for name, image, *_ in annotated:
        if min(image.shape[:2]) < side:
            raise ValueError(
                f"{name} needs at least {side} x {side} pixels; got {image.shape[0]} x "
                f"{image.shape[1]}. Choose a smaller side."
            )
