# SPDX-License-Identifier: Apache-2.0
"""Draws masks as uint8 (h, w), and instances as uint8 (h, w, 3), ready for `save_png`."""

import numpy as np
from jaxtyping import Int, UInt8

from scorejax.data.large_pictures import rows_of_strip
from scorejax.evaluate.pictures import Picture
from scorejax.files import scratch
from scorejax.report import colour_key

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


def mask_picture(instances: Int[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Draws instances white on black, in one channel."""
    drawn = scratch(instances.shape, np.uint8)
    drawn[np.asarray(instances) > 0] = 255
    return drawn


def class_colours(num_classes: int) -> UInt8[np.ndarray, "k 3"]:
    """Colours of classes: black for the background, then those of Pascal VOC's masks.

    Bits of the class number make the colour, the lowest ones its highest bits, so that neighbouring
    classes differ.
    """
    numbers = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


def class_overlay(
    image: UInt8[np.ndarray, "h w 3"], classes: Int[np.ndarray, "h w"], num_classes: int
) -> Picture:
    """Lays the colours of the classes over an image, half transparent; the background stays.

    Raises: ValueError unless image is uint8 (h, w, 3) and classes have its size.
    """
    if image.dtype != np.uint8 or image.shape != (*classes.shape, 3):
        raise ValueError(
            f"class_overlay needs uint8 (h, w, 3) and classes (h, w); got {image.dtype} "
            f"{image.shape} and {classes.shape}."
        )
    colours = class_colours(num_classes)[np.maximum(classes, 0)]
    mixed = (image.astype(np.uint16) + colours) // 2
    return np.where(classes[..., None] > 0, mixed, image).astype(np.uint8)


def with_legend(picture: Picture, *, truth: bool) -> Picture:
    """Adds below an overlay what its colours stand for; without `truth` it has predictions only."""
    names = {PREDICTION: "predicted"}
    if truth:
        names = {TRUTH: "true only", PREDICTION: "predicted only", BOTH: "both"}
    key, height = colour_key(picture.shape[1], names), len(picture)
    drawn = scratch((height + len(key), *picture.shape[1:]), np.uint8)
    drawn[:height], drawn[height:] = picture, key
    return drawn
