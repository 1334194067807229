# SPDX-License-Identifier: Apache-2.0
"""Draws masks and instances as uint8 (h, w, 3), ready for `pictures.save_png`."""

import numpy as np
from jaxtyping import Int, UInt8

from scorejax.data.large_pictures import rows_of_strip
from scorejax.evaluate.pictures import Picture
from scorejax.files import scratch

TRUTH, PREDICTION, BOTH = (64, 224, 96), (255, 64, 64), (255, 232, 64)
"""Outline colours: green is true only, red is predicted only, yellow is both."""


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    predicted: Int[np.ndarray, "h w"],
    truth: Int[np.ndarray, "h w"] | None = None,
) -> Picture:
    """Draws the outlines of predicted instances and, if passed, of true ones over an image.

    Raises: ValueError unless image is uint8 (h, w, 3) and instances have its size.
    """
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        raise ValueError(f"overlay needs uint8 (h, w, 3); got {image.dtype} {image.shape}.")
    drawn = scratch(image.shape, np.uint8)
    drawn[:] = image
    red = outlines(predicted)
    green = np.zeros_like(red) if truth is None else outlines(truth)
    if red.shape != image.shape[:2] or green.shape != image.shape[:2]:
        raise ValueError(
            f"overlay needs instances of the image's size {image.shape[:2]}; got {red.shape} "
            f"and {green.shape}."
        )
    drawn[red], drawn[green], drawn[red & green] = PREDICTION, TRUTH, BOTH
    return drawn


def outlines(instances: Int[np.ndarray, "h w"]) -> np.ndarray:
    """Boolean (h, w): the innermost boundary pixels of each instance, also where two touch."""
    from skimage.segmentation import find_boundaries

    instances = np.asarray(instances)
    edges, num_rows = scratch(instances.shape, bool), rows_of_strip(instances.shape[1])
    for top in range(0, len(instances), num_rows):
        # A boundary pixel has another level beside it, which may be in the next strip.
        above, stop = max(0, top - 1), min(top + num_rows, len(instances))
        strip = find_boundaries(instances[above : stop + 1], mode="inner")
        edges[top:stop] = strip[top - above : stop - above]
    return edges


def mask_picture(instances: Int[np.ndarray, "h w"]) -> Picture:
    """Draws instances white on black."""
    drawn = scratch((*instances.shape, 3), np.uint8)
    drawn[np.asarray(instances) > 0] = 255
    return drawn
