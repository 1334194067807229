# SPDX-License-Identifier: Apache-2.0
"""A classifier of handwritten digits, whose last hidden layer serves as features.

Fitted in seconds to the training half, the same every time; 98 % right on the test half. It sees
levels, not floats: k / 16 and any dequantisation draw of k are the same image to it.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from scorejax.data import images

LEVELS = 17


class DigitsFeatures(NamedTuple):
    """Features (n, 64) and the predicted class (n,)."""

    features: np.ndarray
    label: np.ndarray


def digits_features(pictures: Float[ArrayLike, "n 8 8 1"]) -> DigitsFeatures:
    """Features and class of images in [0, 1]. Raises: ValueError for another shape, or for NaN."""
    return looked_at(_classifier(), _rows(quantized(pictures)))


def looked_at(model: Any, x: Float[np.ndarray, "n d"]) -> DigitsFeatures:
    """What scikit-learn's perceptron has of rows in its last hidden layer, and their class."""
    label = model.predict(x)
    for weight, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        x = np.maximum(x @ weight + bias, 0)
    return DigitsFeatures(x, label)


def quantized(pictures: Float[ArrayLike, "n 8 8 1"]) -> Int[np.ndarray, "n 8 8 1"]:
    """Levels 0 to 16 of images in [0, 1]: k / 16 and all of [k, k + 1) / 17 become k.

    Raises: ValueError unless pictures are finite and (n, 8, 8, 1).
    """
    pictures = np.asarray(pictures, np.float64)
    if pictures.ndim != 4 or pictures.shape[1:] != (8, 8, 1):
        raise ValueError(f"digits have shape (n, 8, 8, 1); got {pictures.shape}")
    if not np.isfinite(pictures).all():
        raise ValueError("digits need finite pixels")
    # Single precision may leave k / 17 a little short of its level.
    return np.clip(np.floor(LEVELS * pictures + 1e-5), 0, LEVELS - 1).astype(np.int64)


@functools.cache
def _classifier():
    from sklearn.neural_network import MLPClassifier  # A second that other data need not pay.
    from threadpoolctl import threadpool_limits

    train = images.load("digits", "train")
    model = MLPClassifier(
        (128, 64), alpha=0.01, batch_size=64, tol=1e-3, max_iter=500, random_state=0
    )
    with threadpool_limits(1):  # The layers are too small for threads: on busy cores 10 x slower.
        return model.fit(_rows(train.image), train.label)


def _rows(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(len(levels), -1) / (LEVELS - 1)
