# SPDX-License-Identifier: Apache-2.0
"""Patches of the photographs that come with scikit-image and scikit-learn: colour, no download."""

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
"""(package, file), in the order of their labels."""
SIDE = 32
STRIDES = {"train": 4, "test": SIDE}
"""Training patches overlap; test patches do not, so that they are nearly independent."""


def photo_patches(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Patches (n, 32, 32, 3) as uint8, and which photograph (n,) each is of.

    Photographs are reduced to half their size, which hides the blocks of their compression. Left
    halves are for training, right ones for testing.
    """
    halves = [_half(_read(*where), split) for where in PHOTOGRAPHS]
    patches = [_patches(half, STRIDES[split]) for half in halves]
    label = np.repeat(np.arange(len(patches)), [len(some) for some in patches])
    return np.concatenate(patches), label.astype(np.int32)


def _read(package: str, name: str) -> np.ndarray:
    file = importlib.resources.files(package) / name
    picture = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
    return np.asarray(picture.reduce(2))


def _half(photograph: np.ndarray, split: str) -> np.ndarray:
    middle = photograph.shape[1] // 2
    return photograph[:, :middle] if split == "train" else photograph[:, middle:]


def _patches(photograph: np.ndarray, stride: int) -> np.ndarray:
    windows = sliding_window_view(photograph, (SIDE, SIDE), axis=(0, 1))[::stride, ::stride]
    return windows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
