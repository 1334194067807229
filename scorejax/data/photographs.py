# SPDX-License-Identifier: Apache-2.0
"""Colour patches of the photographs that come with scikit-image and scikit-learn."""

import importlib.resources
import io

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

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
    for package, name in PHOTOGRAPHS:
        data = (importlib.resources.files(package) / name).read_bytes()
        photograph = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").reduce(2))
        middle = photograph.shape[1] // 2
        half = photograph[:, :middle] if split == "train" else photograph[:, middle:]
        stride = STRIDES[split]
        windows = sliding_window_view(half, (SIDE, SIDE), axis=(0, 1))[::stride, ::stride]
        patches.append(windows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
    label = np.repeat(np.arange(len(patches)), [len(part) for part in patches])
    return np.concatenate(patches), label.astype(np.int32)
