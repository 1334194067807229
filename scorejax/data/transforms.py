# SPDX-License-Identifier: Apache-2.0
"""Host-side image transforms: crop and resize, then map to the model's float range.

Cropping and resizing take one image (h, w, c); flips, scaling and dequantisation take a batch
(b, h, w, c). Random transforms take a NumPy generator first.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Real
from PIL import Image

Transform = Callable[[np.random.Generator, np.ndarray], np.ndarray]
"""(generator, grey levels (b, h, w, c), uint8 or real) -> float32 (b, h, w, c)."""


def flip(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = rng.random(len(images)) < 0.5
    return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def to_unit(images: np.ndarray, levels: int = 256) -> np.ndarray:
    """Maps grey levels 0 .. levels - 1 to float32 in [0, 1]; level k becomes k / (levels - 1)."""
    return images.astype(np.float32) / np.float32(levels - 1)


def dequantize(rng: np.random.Generator, images: np.ndarray, levels: int = 256) -> np.ndarray:
    """Maps grey level k to a uniform float32 draw from [k / levels, (k + 1) / levels).

    The mean log-density of the result bounds the log-probability of the levels from below.
    Source: Theis et al. 2016, arXiv:1511.01844, Section 3.1.
    """
    level = images.astype(np.float32)
    noisy = level + rng.random(images.shape, dtype=np.float32)
    # Single precision sometimes rounds the sum up to the next level.
    return np.minimum(noisy, np.nextafter(level + 1, np.float32(0))) / np.float32(levels)


def centre(images: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to [-1, 1]."""
    return 2 * images - 1


def uncentre(images: np.ndarray) -> np.ndarray:
    """Maps [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def make_transform(
    *, levels: int, random_flip: bool, uniform_dequantization: bool, centered: bool
) -> Transform:
    """Returns the transform of stored uint8 images (b, h, w, c) into training examples."""

    def transform(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
        if random_flip:
            images = flip(rng, images)
        unit = (
            dequantize(rng, images, levels) if uniform_dequantization else to_unit(images, levels)
        )
        return centre(unit) if centered else unit

    return transform


def centre_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crops the centre; an odd row or column is cut from the bottom or the right."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize(
    image: np.ndarray, height: int, width: int, *, method: Image.Resampling = Image.BILINEAR
) -> np.ndarray:
    """Resamples a uint8 image; shrinking is antialiased, and values are rounded and clipped."""
    if image.shape[:2] == (height, width):
        return image
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), method))
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack(planes, axis=-1)


def resize_unrounded(
    image: Real[np.ndarray, "h w c"], height: int, width: int
) -> Float64[np.ndarray, "height width c"]:
    """Resamples bilinearly in double precision; shrinking is antialiased, values stay real."""
    rows, columns = (
        _triangles(*lengths) for lengths in zip(image.shape[:2], (height, width), strict=True)
    )
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64), optimize=True)


def _triangles(length: int, new_length: int) -> Float64[np.ndarray, "new_length length"]:
    """Weights of the old pixels in each new one: a triangle as wide as two of the wider pixels."""
    ratio = length / new_length
    middles = (np.arange(new_length) + 0.5) * ratio - 0.5
    distances = np.abs(middles[:, None] - np.arange(length)) / max(ratio, 1.0)
    weights = np.maximum(1 - distances, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to size x size; most data sets already have that size."""
    return resize(image, size, size)


def crop_face(image: np.ndarray, size: int) -> np.ndarray:
    """Crops the central 140 x 140 pixels, then resizes: the convention for CelebA."""
    return resize(centre_crop(image, 140, 140), size, size)


def shrink_then_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Shrinks the shorter side to `size`, then crops the centre."""
    ratio = size / min(image.shape[:2])
    height, width = (round(side * ratio) for side in image.shape[:2])
    return centre_crop(resize(image, height, width), size, size)


def crop_then_shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Crops the central square, then shrinks it with the bicubic filter."""
    side = min(image.shape[:2])
    return resize(centre_crop(image, side, side), size, size, method=Image.BICUBIC)


def crop_scene(image: np.ndarray, size: int) -> np.ndarray:
    """Convention for LSUN: at 256 pixels or more crop first, below that shrink first."""
    return crop_then_shrink(image, size) if size >= 256 else shrink_then_crop(image, size)


def square_unrounded(image: np.ndarray, size: int) -> Float32[np.ndarray, "size size c"]:
    """Crops the central square, then shrinks it bilinearly to real grey levels, 0 to 255.

    The convention of recovery likelihood for CelebA, whose 218 x 178 pixels lose 20 rows at either
    end, and LSUN. Source: the code published with arXiv:2012.08125.
    """
    side = min(image.shape[:2])
    return resize_unrounded(centre_crop(image, side, side), size, size).astype(np.float32)
