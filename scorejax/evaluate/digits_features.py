# SPDX-License-Identifier: Apache-2.0
"""Features of handwritten digits: the last hidden layer of a classifier fitted on the spot.

The fit takes seconds, is deterministic and uses the training half alone; accuracy on the test half
is 98 %. The classifier sees grey levels: k / 16 and every dequantised draw of k are the same input.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from scorejax.data import images

LEVELS = 17


class DigitsFeatures(NamedTuple):
    """Features (n, 64) and predicted classes (n,)."""

    features: np.ndarray
    label: np.ndarray


def digits_features(pictures: Float[ArrayLike, "n 8 8 1"]) -> DigitsFeatures:
    """Features and classes of images in [0, 1]. Raises: ValueError as `quantized`."""
    return hidden_features(_classifier(), _rows(quantized(pictures)))


def hidden_features(model: Any, x: Float[np.ndarray, "n d"]) -> DigitsFeatures:
    """Last hidden layer and predicted class of rows under a scikit-learn MLPClassifier (ReLU)."""
    label = model.predict(x)
    for weight, bias in zip(model.coefs_[:-1], model.intercepts_[:-1], strict=True):
        x = np.maximum(x @ weight + bias, 0)
    return DigitsFeatures(x, label)


def quantized(pictures: Float[ArrayLike, "n 8 8 1"]) -> Int[np.ndarray, "n 8 8 1"]:
    """Quantises images in [0, 1] to levels 0 .. 16: k / 16 and [k / 17, (k + 1) / 17) become k.

    Raises: ValueError unless the pictures are finite and of shape (n, 8, 8, 1).
    """
    pictures = np.asarray(pictures, np.float64)
    if pictures.ndim != 4 or pictures.shape[1:] != (8, 8, 1):
        raise ValueError(f"digits need shape (n, 8, 8, 1); got {pictures.shape}")
    if not np.isfinite(pictures).all():
        raise ValueError("digits need finite pixels; got nan or inf")
    # In single precision k / 17 may fall slightly short of its level.
    return np.clip(np.floor(LEVELS * pictures + 1e-5), 0, LEVELS - 1).astype(np.int64)


@functools.cache
def _classifier():
    from sklearn.neural_network import MLPClassifier  # Imported here: it takes a second.
    from threadpoolctl import threadpool_limits

    train = images.load("digits", "train")
    model = MLPClassifier(
        (128, 64), alpha=0.01, batch_size=64, tol=1e-3, max_iter=500, random_state=0
    )
    with threadpool_limits(1):  # Threads slow such small layers down: 10 x on busy cores.
        return model.fit(_rows(train.image), train.label)


def _rows(levels: np.ndarray) -> np.ndarray:
    return levels.reshape(len(levels), -1) / (LEVELS - 1)
