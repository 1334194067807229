# SPDX-License-Identifier: Apache-2.0
"""Masks drawn over their images, to look at: uint8 (h, w, 3), ready for `pictures.save_png`."""

import numpy as np
from jaxtyping import Int, UInt8

from scorejax.evaluate.pictures import Picture

TRUTH, PREDICTION, BOTH = (64, 224, 96), (255, 64, 64), (255, 232, 64)
"""Colours of outlines: green was missed, red was made up, yellow agrees."""


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    predicted: Int[np.ndarray, "h w"],
    truth: Int[np.ndarray, "h w"] | None = None,
) -> Picture:
    """Outlines of the predicted instances and, where given, of the true ones.

    Raises: ValueError unless image is uint8 (h, w, 3) and instances have its size.
    """
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ValueError(f"overlay needs uint8 (h, w, 3); got {image.dtype} {image.shape}.")
    drawn = image.copy()
    found = outlines(predicted)
    true = np.zeros_like(found) if truth is None else outlines(truth)
    if found.shape != image.shape[:2] or true.shape != image.shape[:2]:
        raise ValueError(
            f"overlay needs instances of the image's size {image.shape[:2]}; got {found.shape} "
            f"and {true.shape}."
        )
    drawn[found], drawn[true], drawn[found & true] = PREDICTION, TRUTH, BOTH
    return drawn


def outlines(instances: Int[np.ndarray, "h w"]) -> np.ndarray:
    """True (h, w) on the inner rim of each instance, also where two touch."""
    from skimage.segmentation import find_boundaries

    return find_boundaries(np.asarray(instances), mode="inner")


def mask_picture(instances: Int[np.ndarray, "h w"]) -> Picture:
    """White where there is an instance, black elsewhere."""
    white = np.where(np.asarray(instances) > 0, 255, 0).astype(np.uint8)
    return np.repeat(white[..., None], 3, axis=-1)
