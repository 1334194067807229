# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance of a small set of samples to the training images, to choose a checkpoint.

Features come from FID's InceptionV3 or from the digits classifier. With a thousand samples the
distance is not comparable to a published FID, but it ranks the checkpoints of one run.
Source: Song & Ermon 2020, arXiv:2006.09011, Section 5.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scorejax.choices import unknown
from scorejax.data.view import ImageView
from scorejax.evaluate import frechet
from scorejax.evaluate.digits_features import digits_features
from scorejax.evaluate.progress import Metric
from scorejax.evaluate.sample_quality import inception_features, stored_levels
from scorejax.interop.networks.inception import load_inception
from scorejax.report import Evaluation

Features = Callable[[np.ndarray], np.ndarray]
"""Images (n, h, w, c) in [0, 1] -> (n, d)."""
DIGITS = "digits"
WEIGHTS = (".pth", ".pt", ".safetensors")


def image_features(name: str, matmul_precision: str = "highest") -> Features:
    """Returns the features of "digits" or of a file with the weights of FID's InceptionV3.

    The precision is that of Inception, as in `inception_features`.
    Raises: ValueError if the name is neither; FileNotFoundError if the file is missing.
    """
    if name == DIGITS:
        return lambda images: digits_features(images).features
    if not name.endswith(WEIGHTS):
        raise unknown("eval_features", name, [DIGITS, *(f"weights{end}" for end in WEIGHTS)])
    network, weights = load_inception(name)
    apply = jax.jit(inception_features(network, matmul_precision=matmul_precision))
    return lambda images: np.asarray(apply(weights, stored_levels(images))["pool"])


def sample_distance(
    draw: Callable[[Any, Any], dict], features: Features, images: ImageView, num: int, batch: int
) -> Metric:
    """Returns the metric "frechet" of `num` samples draw(variables, keys (b,)), `batch` at a time.

    The metric ignores its key and draws with the same noise every time. NaN pixels count as black.
    Raises: ValueError unless num >= 2.
    """
    if num < 2:
        raise ValueError(f"eval_frechet_samples needs to be at least 2, or 0; got {num}")
    drawn = jax.jit(lambda variables, keys: draw(variables, keys)["image"])

    @functools.cache
    def reference() -> frechet.Moments:
        stored, white = images.streamed("train"), images.levels - 1
        chunks = (range(at, min(at + batch, len(stored))) for at in range(0, len(stored), batch))
        parts = [features(np.asarray(stored[chunk], np.float32) / white) for chunk in chunks]
        return frechet.moments(np.concatenate(parts))

    def metric(rng: Any, variables: Any) -> Evaluation:
        keys = jax.random.split(jax.random.key(0), -(-num // batch) * batch)
        parts = []
        for start in range(0, num, batch):
            x = np.nan_to_num(drawn(variables, keys[start : start + batch]))
            parts.append(features(np.clip(x, 0, 1)))
        ours = frechet.moments(np.concatenate(parts)[:num])
        return Evaluation({"frechet": frechet.gaussian_frechet_distance(reference(), ours)}, {})

    return metric
