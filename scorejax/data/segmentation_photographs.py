# SPDX-License-Identifier: Apache-2.0
"""Four photographs that come with scikit-image, with masks by classical procedures.

Nobody has drawn these masks: they are weak labels. A score against them says how well a network
learns a rule that is written below, on real pixels, and nothing about the anatomy.
"""

import importlib.resources
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy import ndimage

from scorejax.choices import choose, require_known
from scorejax.data.images import SPLITS
from scorejax.data.segmentation import AnnotatedImage

Picture = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


def photograph(name: str, split: str) -> AnnotatedImage:
    """The left ("train") or right ("test") half of a photograph, with its weak mask.

    Masks are made of the whole and then cut; instances are the 4-connected regions of the half.
    Raises: ValueError with the known names for another.
    """
    file, annotate = choose("photograph", name, PHOTOGRAPHS)
    require_known("split", split, SPLITS)
    with (importlib.resources.files("skimage.data") / file).open("rb") as stored:
        opened = Image.open(stored).convert("RGB")
    # The retina is photographed large: at half size its finest vessels are two pixels wide.
    image = np.asarray(opened.reduce(2) if name == "retina" else opened)
    mask = annotate(image)
    middle = image.shape[1] // 2
    half = slice(0, middle) if split == "train" else slice(middle, None)
    instances = ndimage.label(mask[:, half])[0].astype(np.int32)
    return AnnotatedImage(f"{name}-{split}", image[:, half], instances)


def stained_nuclei(image: Picture) -> Mask:
    """Haematoxylin by colour deconvolution, above Otsu's threshold and above its local mean."""
    from skimage.color import rgb2hed
    from skimage.filters import threshold_local, threshold_otsu

    blue = ndimage.gaussian_filter(rgb2hed(image)[..., 0], 1)
    # Otsu's alone joins the nuclei of the brown tissue, whose blue it cannot quite separate.
    return _tidy((blue > threshold_otsu(blue)) & (blue > threshold_local(blue, 51)), smallest=40)


def vessels(image: Picture) -> Mask:
    """Ridges of the green channel (Sato's vesselness), by hysteresis inside the field of view."""
    from skimage.filters import apply_hysteresis_threshold, sato

    green = image[..., 1].astype(float)
    field = ndimage.binary_erosion(image.sum(axis=-1) > 60, iterations=12)
    ridges = np.where(field, sato(green, sigmas=(1, 2, 3), black_ridges=True), 0)
    low, high = np.quantile(ridges[field], [0.88, 0.95])
    return _without_specks(apply_hysteresis_threshold(ridges, low, high), smallest=60)


def bright_objects(image: Picture) -> Mask:
    """What is brighter than the Gaussian mean of its neighbourhood, holes filled."""
    from skimage.filters import threshold_local

    grey = ndimage.gaussian_filter(image[..., 1].astype(float), 1)
    return _tidy(grey > threshold_local(grey, 101, offset=-8), smallest=300)


def bright_cell(image: Picture) -> Mask:
    """Otsu's threshold; the left half of the photograph has no cell, so its mask is empty."""
    from skimage.filters import threshold_otsu

    grey = ndimage.gaussian_filter(image[..., 1].astype(float), 1)
    return _tidy(grey > threshold_otsu(grey), smallest=2000)


PHOTOGRAPHS: dict[str, tuple[str, Callable[[Picture], Mask]]] = {
    "cell": ("cell.png", bright_cell),
    "coins": ("coins.png", bright_objects),
    "ihc": ("ihc.png", stained_nuclei),
    "retina": ("retina.jpg", vessels),
}
"""Name: (file in skimage.data, how its mask is made)."""


def _tidy(mask: Mask, smallest: int) -> Mask:
    opened = ndimage.binary_opening(ndimage.binary_fill_holes(mask), iterations=2)
    return _without_specks(opened, smallest)


def _without_specks(mask: Mask, smallest: int) -> Mask:
    """Regions of fewer than `smallest` pixels are removed."""
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    kept = np.bincount(regions.ravel()) >= smallest
    kept[0] = False
    return kept[regions]
