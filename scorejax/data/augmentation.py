# SPDX-License-Identifier: Apache-2.0
"""Random affine augmentation of an image and its labels, on the host.

The augmentation follows BiO-Net's published training script (arXiv:2007.00243): rotation, shift,
shear, scaling and mirroring, each about the centre. The script interpolates the image five times.
Here the five matrices are multiplied first and the image is interpolated once.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8

Image = UInt8[np.ndarray, "h w c"] | Float32[np.ndarray, "h w c"]
Labels = Bool[np.ndarray, "h w"] | Int32[np.ndarray, "h w"]
BORDERS = ("constant", "edge", "reflect", "symmetric", "wrap")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Half-widths of the uniform ranges of the random transform; defaults are BiO-Net's.

    Raises: ValueError if a half-width is negative or too large, or `border` is unknown.
    """

    rotation: float = 15.0
    """Maximum angle in degrees."""
    translation: float = 0.05
    """Maximum shift as a fraction of the side, drawn separately for rows and columns."""
    shear: float = 50.0
    """Maximum angle in degrees; a row shifts by tan(angle) times its distance from the middle."""
    scale: float = 0.2
    """Maximum deviation of the scale factor from 1; both axes share the factor."""
    flip: bool = True
    """Mirrors left to right and top to bottom, each with probability 1/2."""
    border: str = "constant"
    """How pixels from outside the image are filled: a mode of `numpy.pad`. "constant" gives black
    pixels and background."""

    def __post_init__(self) -> None:
        for name, limit in {"rotation": 180, "translation": 1, "shear": 90, "scale": 1}.items():
            value = getattr(self, name)
            if not 0 <= value < limit and (name, value) != ("rotation", 180):
                raise ValueError(f"augmentation needs 0 <= {name} < {limit}; got {value}.")
        if self.border not in BORDERS:
            raise ValueError(
                f"augmentation needs border to be one of {', '.join(BORDERS)}; got {self.border!r}."
            )


def random_map(
    rng: np.random.Generator, augmentation: Augmentation, height: int, width: int
) -> Float[np.ndarray, "3 3"]:
    """Draws the matrix that maps the homogeneous coordinates (column, row, 1) of a pixel."""
    turn, slant = np.deg2rad(
        [rng.uniform(-limit, limit) for limit in (augmentation.rotation, augmentation.shear)]
    )
    shift = rng.uniform(-augmentation.translation, augmentation.translation, 2) * (width, height)
    scale = 1 + rng.uniform(-augmentation.scale, augmentation.scale)
    mirror = np.where(rng.random(2) < 0.5, -1, 1) if augmentation.flip else np.ones(2)
    rotation = _linear([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shear = _linear([[1, np.tan(slant)], [0, 1]])
    stretch = _linear(np.diag(scale * mirror))
    middle = np.array([width - 1, height - 1]) / 2
    return _move(middle) @ stretch @ shear @ _move(shift) @ rotation @ _move(-middle)


def augment(
    rng: np.random.Generator, image: Image, labels: Labels, augmentation: Augmentation
) -> tuple[Image, Labels]:
    """Applies one random transform to an image (bilinear) and its labels (nearest neighbour).

    Both keep their types: uint8 is rounded. Labels need to be below 2^24.
    """
    from skimage.transform import warp  # Imported here: it takes half a second.

    inverse = np.linalg.inv(random_map(rng, augmentation, *labels.shape))
    options = {"mode": augmentation.border, "preserve_range": True}
    pixels = warp(image.astype(np.float32), inverse, order=1, **options)
    if image.dtype == np.uint8:
        pixels = pixels.round().clip(0, 255)
    moved = warp(labels.astype(np.float32), inverse, order=0, **options)
    return pixels.astype(image.dtype), moved.round().astype(labels.dtype)


def _linear(matrix: np.ndarray | list) -> Float[np.ndarray, "3 3"]:
    homogeneous = np.eye(3)
    homogeneous[:2, :2] = matrix
    return homogeneous


def _move(shift: np.ndarray) -> Float[np.ndarray, "3 3"]:
    homogeneous = np.eye(3)
    homogeneous[:2, 2] = shift
    return homogeneous
