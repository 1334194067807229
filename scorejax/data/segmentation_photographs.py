# SPDX-License-Identifier: Apache-2.0
"""Four photographs that come with scikit-image, with masks computed by classical methods.

The masks are weak labels: nobody has drawn them. A score against them measures how well a network
learns the rules below on real pixels; it says nothing about anatomy.
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

    The mask is computed on the whole photograph, then cut; instances are the 4-connected regions
    of the half. Raises: ValueError if the name or the split is unknown.
    """
    file, annotate = choose("photograph", name, PHOTOGRAPHS)
    require_known("split", split, SPLITS)
    with (importlib.resources.files("skimage.data") / file).open("rb") as stored:
        opened = Image.open(stored).convert("RGB")
    # The retina is a large photograph: at half size its finest vessels are two pixels wide.
    image = np.asarray(opened.reduce(2) if name == "retina" else opened)
    mask = annotate(image)
    middle = image.shape[1] // 2
    half = slice(0, middle) if split == "train" else slice(middle, None)
    instances = ndimage.label(mask[:, half])[0].astype(np.int32)
    return AnnotatedImage(f"{name}-{split}", image[:, half], instances)


def stained_nuclei(image: Picture) -> Mask:
    """Colour deconvolution: haematoxylin above both Otsu's threshold and its local mean."""
    from skimage.color import rgb2hed
    from skimage.filters import threshold_local, threshold_otsu

    blue = ndimage.gaussian_filter(rgb2hed(image)[..., 0], 1)
    # Otsu's threshold alone merges nuclei in brown tissue, where the stains separate poorly.
    return _tidy((blue > threshold_otsu(blue)) & (blue > threshold_local(blue, 51)), smallest=40)


def vessels(image: Picture) -> Mask:
    """Hysteresis threshold of the green channel's ridges (Sato's filter) in the field of view."""
    from skimage.filters import apply_hysteresis_threshold, sato

    green = image[..., 1].astype(float)
    field = ndimage.binary_erosion(image.sum(axis=-1) > 60, iterations=12)
    ridges = np.where(field, sato(green, sigmas=(1, 2, 3), black_ridges=True), 0)
    low, high = np.quantile(ridges[field], [0.88, 0.95])
    return _without_specks(apply_hysteresis_threshold(ridges, low, high), smallest=60)


def bright_objects(image: Picture) -> Mask:
    """Pixels brighter than the Gaussian mean of their neighbourhood, with holes filled."""
    from skimage.filters import threshold_local

    grey = ndimage.gaussian_filter(image[..., 1].astype(float), 1)
    return _tidy(grey > threshold_local(grey, 101, offset=-8), smallest=300)


def bright_cell(image: Picture) -> Mask:
    """Otsu's threshold. The left half of the photograph has no cell, so its mask is empty."""
    from skimage.filters import threshold_otsu

    grey = ndimage.gaussian_filter(image[..., 1].astype(float), 1)
    return _tidy(grey > threshold_otsu(grey), smallest=2000)


PHOTOGRAPHS: dict[str, tuple[str, Callable[[Picture], Mask]]] = {
    "cell": ("cell.png", bright_cell),
    "coins": ("coins.png", bright_objects),
    "ihc": ("ihc.png", stained_nuclei),
    "retina": ("retina.jpg", vessels),
}
"""Name -> (file in skimage.data, function that computes its mask)."""


def _tidy(mask: Mask, smallest: int) -> Mask:
    opened = ndimage.binary_opening(ndimage.binary_fill_holes(mask), iterations=2)
    return _without_specks(opened, smallest)


def _without_specks(mask: Mask, smallest: int) -> Mask:
    """Removes 8-connected regions of fewer than `smallest` pixels."""
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    kept = np.bincount(regions.ravel()) >= smallest
    kept[0] = False
    return kept[regions]
