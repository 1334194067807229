# SPDX-License-Identifier: Apache-2.0
"""Synthetic images of stained nuclei with exact masks, generated without any download.

Nuclei are ellipses with uneven outlines. Some touch, some are out of focus, and the depth of the
stain varies from one to the next. The background is the texture of a real tissue section (the
photograph `ihc` of scikit-image), with thin stained fibres as distractors. Stains absorb light by
the Beer-Lambert law, I = exp(-sum_s concentration_s * vector_s), with the haematoxylin and eosin
vectors of Ruifrok and Johnston 2001.
"""

import functools
import importlib.resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import Image
from scipy import ndimage

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
SEMI_AXES = (4.0, 9.0)
"""Range of the semi-axes of a nucleus in pixels, whatever the image size."""
COVERAGE = (0.15, 0.4)
"""Range of the area fraction covered by nuclei before overlaps are removed."""
SMALLEST_VISIBLE = 0.4
"""A nucleus is dropped if earlier nuclei leave less than this fraction of it visible."""


class Nuclei(NamedTuple):
    """Images (n, size, size, 3) as uint8; instances (n, size, size) as int32, 0 for background."""

    images: UInt8[np.ndarray, "n size size 3"]
    instances: Int32[np.ndarray, "n size size"]


class NucleiInFocus(NamedTuple):
    """Nuclei with the class of each pixel: 0 background, 1 in focus, 2 out of focus."""

    images: UInt8[np.ndarray, "n size size 3"]
    instances: Int32[np.ndarray, "n size size"]
    classes: Int32[np.ndarray, "n size size"]


def nuclei(num: int, size: int, seed: int) -> Nuclei:
    """Generates stained sections; image i is a function of (seed, i, size) alone.

    Instances are numbered 1, 2, … without gaps; each is one 4-connected region.
    Raises: ValueError unless num >= 1, size >= 16 and seed >= 0.
    """
    return Nuclei(*nuclei_in_focus(num, size, seed)[:2])


def nuclei_in_focus(num: int, size: int, seed: int) -> NucleiInFocus:
    """The images of `nuclei`, with classes by sharpness: which of the two is for the eye to tell.

    Raises: as `nuclei`.
    """
    if num < 1 or size < 16:
        raise ValueError(f"nuclei needs num >= 1 and size >= 16; got num={num}, size={size}.")
    drawn = [_section(np.random.default_rng((seed, index)), size) for index in range(num)]
    return NucleiInFocus(*(np.stack(part) for part in zip(*drawn, strict=True)))


def _section(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    instances = _place(rng, size)
    eosin = rng.uniform(0.25, 0.6) * (0.3 + 1.4 * _texture(rng, size))
    haematoxylin = 0.25 * _texture(rng, size) + _fibres(rng, size)
    # Nuclei lie at two depths, one of them out of focus, as in a real micrograph.
    blurred = rng.random(instances.max() + 1) < 0.25
    stained = _stain(rng, instances)
    sharp_sigma, blurred_sigma = rng.uniform(0.5, 1.0), rng.uniform(1.5, 2.5)
    for out_of_focus, sigma in ((False, sharp_sigma), (True, blurred_sigma)):
        layer = np.where(blurred[instances] == out_of_focus, stained, 0)
        haematoxylin = haematoxylin + ndimage.gaussian_filter(layer, sigma)
    density = haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    light = 255 * _illumination(rng, size)[..., None] * np.exp(-density)
    noisy = light + rng.normal(0, rng.uniform(1, 5), light.shape)
    classes = np.where(instances > 0, 1 + blurred[instances], 0).astype(np.int32)
    return noisy.round().clip(0, 255).astype(np.uint8), instances, classes


def _place(rng: np.random.Generator, size: int) -> Int32[np.ndarray, "size size"]:
    """Places nuclei one by one; about half of them beside one placed earlier."""
    instances = np.zeros((size, size), np.int32)
    mean_area = np.pi * np.mean(SEMI_AXES) ** 2
    placed: list[tuple[np.ndarray, float]] = []
    for _ in range(max(1, round(rng.uniform(*COVERAGE) * size**2 / mean_area))):
        axes = rng.uniform(*SEMI_AXES) * np.array([1, rng.uniform(0.6, 1)])
        centre, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
        if placed and rng.random() < 0.5:
            neighbour, radius = placed[rng.integers(len(placed))]
            distance = (radius + axes.mean()) * rng.uniform(0.8, 1.05)
            centre = neighbour + distance * np.array([np.sin(angle), np.cos(angle)])
        box, nucleus = _outline(rng, centre, axes, size)
        visible = _largest_region(nucleus & (instances[box] == 0))
        if visible.sum() >= max(1, SMALLEST_VISIBLE * nucleus.sum()):
            instances[box][visible] = len(placed) + 1
            placed.append((centre, axes.mean()))
    return instances


def _outline(
    rng: np.random.Generator, centre: np.ndarray, axes: np.ndarray, size: int
) -> tuple[tuple[slice, slice], Bool[np.ndarray, "h w"]]:
    """Draws an ellipse whose radius varies by a few per cent: its bounding box and its mask."""
    from skimage.draw import polygon  # Imported here: it takes half a second.

    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    order, tilt = np.arange(2, 5), rng.uniform(0, np.pi)
    waver = rng.normal(0, 0.04, 3) @ np.cos(order[:, None] * angle + rng.uniform(0, 6.3, (3, 1)))
    along, across = axes[:, None] * np.array([np.cos(angle), np.sin(angle)]) * (1 + waver)
    rows = centre[0] + along * np.sin(tilt) + across * np.cos(tilt)
    columns = centre[1] + along * np.cos(tilt) - across * np.sin(tilt)
    inside = polygon(rows, columns, (size, size))
    if not len(inside[0]):
        return (slice(0), slice(0)), np.zeros((0, 0), bool)
    low, high = np.min(inside, axis=1), np.max(inside, axis=1) + 1
    region = np.zeros(high - low, bool)
    region[inside[0] - low[0], inside[1] - low[1]] = True
    return (slice(low[0], high[0]), slice(low[1], high[1])), region


def _largest_region(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    regions, count = ndimage.label(mask)
    if count < 2:
        return mask
    return regions == 1 + np.argmax(np.bincount(regions.ravel())[1:])


def _stain(rng: np.random.Generator, instances: np.ndarray) -> Float[np.ndarray, "size size"]:
    """Concentration of haematoxylin: a random strength per nucleus, times a random texture."""
    strength = rng.uniform(0.5, 1.5, instances.max() + 1)
    strength[0] = 0
    clumps = ndimage.gaussian_filter(rng.normal(size=instances.shape), 1.2)
    return strength[instances] * np.clip(1 + 0.25 * clumps / clumps.std(), 0.2, 2)


def _fibres(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Thin, faintly stained streaks, which a colour threshold mistakes for nuclei."""
    fibres = np.zeros((size, size))
    for _ in range(rng.poisson(size**2 / 1500)):
        axes = np.array([rng.uniform(6, 14), rng.uniform(0.8, 1.5)])
        box, streak = _outline(rng, rng.uniform(0, size, 2), axes, size)
        fibres[box][streak] = rng.uniform(0.25, 0.6)
    return ndimage.gaussian_filter(fibres, 0.7)


def _illumination(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Brightness as a plane that rises by up to 15 % from one side to the other."""
    slope, angle = rng.uniform(0, 0.15), rng.uniform(0, 2 * np.pi)
    row, column = np.mgrid[:size, :size] / size - 0.5
    return rng.uniform(0.85, 1) + slope * (row * np.sin(angle) + column * np.cos(angle))


def _texture(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Random crop of the tissue in [0, 1], rotated and flipped; padded by mirroring above 512."""
    tissue = np.rot90(_tissue(), rng.integers(4))[:: rng.choice((-1, 1))]
    missing = max(0, size - min(tissue.shape))
    tissue = np.pad(tissue, (0, missing), mode="symmetric")
    top, left = (rng.integers(side - size + 1) for side in tissue.shape)
    return tissue[top : top + size, left : left + size]


@functools.cache
def _tissue() -> Float[np.ndarray, "512 512"]:
    """The brown stain of `ihc`, which marks tissue but not its nuclei, scaled to [0, 1]."""
    from skimage.color import rgb2hed

    with (importlib.resources.files("skimage.data") / "ihc.png").open("rb") as file:
        brown = rgb2hed(np.asarray(Image.open(file).convert("RGB")))[..., 2]
    low, high = np.quantile(brown, [0.01, 0.99])
    return ((brown - low) / (high - low)).clip(0, 1)
