# SPDX-License-Identifier: Apache-2.0
"""Random movements of an image together with its mask, on the host.

Those of BiO-Net's published training script (arXiv:2007.00243): a rotation, a shift, a shear, a
scale and mirrorings, each about the centre. The script resamples five times; here the five maps
are multiplied first and pixels are interpolated once.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8

BORDERS = ("constant", "edge", "reflect", "symmetric", "wrap")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Half-widths of the uniform ranges that a movement is drawn from; defaults are the script's.

    Raises: ValueError for a negative or impossible range.
    """

    rotation: float = 15.0
    """Degrees."""
    translation: float = 0.05
    """Share of the side, for rows and columns separately."""
    shear: float = 50.0
    """Degrees: columns move by tan(shear) times their distance from the middle row."""
    scale: float = 0.2
    """About 1, the same along both axes."""
    flip: bool = True
    """Left to right and top to bottom, each with probability one half."""
    border: str = "constant"
    """What comes in from outside: black and background, or as `numpy.pad` calls it."""

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
    """A homogeneous matrix that takes (column, row, 1) of a pixel to where it is moved."""
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
    rng: np.random.Generator,
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    augmentation: Augmentation,
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """Moves an image and its mask alike: bilinear for the one, the nearest pixel for the other."""
    from skimage.transform import warp  # Half a second that other data sets need not pay.

    moved = random_map(rng, augmentation, *mask.shape)
    back, border = np.linalg.inv(moved), augmentation.border
    floats = warp(image.astype(np.float32), back, order=1, mode=border, preserve_range=True)
    marked = warp(mask.astype(np.float32), back, order=0, mode=border)
    return floats.round().clip(0, 255).astype(np.uint8), marked > 0.5


def _linear(matrix: np.ndarray | list) -> Float[np.ndarray, "3 3"]:
    whole = np.eye(3)
    whole[:2, :2] = matrix
    return whole


def _move(shift: np.ndarray) -> Float[np.ndarray, "3 3"]:
    whole = np.eye(3)
    whole[:2, 2] = shift
    return whole
