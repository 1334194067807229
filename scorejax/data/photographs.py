# SPDX-License-Identifier: Apache-2.0
"""Patches of the photographs that come with scikit-image and scikit-learn."""

import importlib.resources
import io

import numpy as np
from jaxtyping import UInt8
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from scorejax.data.transforms import crop_then_shrink

PHOTOGRAPHS = (
    ("skimage.data", "astronaut.png"),
    ("skimage.data", "chelsea.png"),
    ("skimage.data", "coffee.png"),
    ("skimage.data", "motorcycle_left.png"),
    ("skimage.data", "rocket.jpg"),
    ("sklearn.datasets.images", "china.jpg"),
    ("sklearn.datasets.images", "flower.jpg"),
)
"""(package, file); the index of a photograph is the label of its patches."""
SIDE = 32
STRIDES = {"train": 4, "test": SIDE}
"""Step between patches in pixels. Test patches do not overlap, so they are nearly independent."""


def photo_patches(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches (n, 32, 32, 3) as uint8, and the index (n,) of the photograph each comes from.

    Photographs are shrunk to half their size, which hides their JPEG blocks. The left halves are
    the training split, the right halves the test split.
    """
    patches = []
    for photograph in map(_read, PHOTOGRAPHS):
        middle = photograph.shape[1] // 2
        half = photograph[:, :middle] if split == "train" else photograph[:, middle:]
        patches.append(_windows(half, SIDE, STRIDES[split]))
    label = np.repeat(np.arange(len(patches)), [len(part) for part in patches])
    return np.concatenate(patches), label.astype(np.int32)


def textures(side: int, channels: int) -> UInt8[np.ndarray, "n side side channels"]:
    """Patches of scikit-learn's two photographs that do not overlap, in a fixed random order.

    One channel is grey. Photographs are shrunk as in `photo_patches`; one that is too small for the
    side gives its middle square, enlarged.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    patches = []
    for source in PHOTOGRAPHS[-2:]:
        photograph = _read(source, mode)
        if side > min(photograph.shape[:2]):
            photograph = crop_then_shrink(photograph, side)
        patches.append(_windows(photograph, side, side))
    return np.random.default_rng(0).permutation(np.concatenate(patches))


def _read(source: tuple[str, str], mode: str = "RGB") -> UInt8[np.ndarray, "h w c"]:
    package, name = source
    data = (importlib.resources.files(package) / name).read_bytes()
    photograph = np.asarray(Image.open(io.BytesIO(data)).convert(mode).reduce(2))
    return np.atleast_3d(photograph)


def _windows(image: np.ndarray, side: int, stride: int) -> UInt8[np.ndarray, "n side side c"]:
    windows = sliding_window_view(image, (side, side), axis=(0, 1))[::stride, ::stride]
    return windows.reshape(-1, image.shape[2], side, side).transpose(0, 2, 3, 1)
