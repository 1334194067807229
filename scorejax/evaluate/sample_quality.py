# SPDX-License-Identifier: Apache-2.0
"""Sample quality in the features of FID's InceptionV3: the metrics by name, from features alone."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from scorejax.evaluate import frechet
from scorejax.evaluate.inception_score import inception_score
from scorejax.evaluate.kernel_distance import kernel_distance
from scorejax.models.inception import NUM_FEATURES, Inception


class Reference(NamedTuple):
    """Real images: the moments of their features and, unless only these are known, the features."""

    moments: frechet.Moments
    pool: np.ndarray | None = None
    """Features (n, 2048), one row an image."""


def stored_levels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Images in [0, 1] at 256 levels, cut downwards, as the published evaluations store them.

    What is not a number becomes black, so that a failed sample is judged with the others.
    """
    return jnp.floor(255 * jnp.clip(jnp.nan_to_num(x), 0, 1)).astype(jnp.uint8)


def inception_features(
    network: Inception, levels: int = 256
) -> Callable[[Any, Array], dict[str, Array]]:
    """features(variables, images (b, h, w, c)) -> pool (b, 2048), logits (b, 1008).

    Images are uint8 and have `levels` levels, which are brought to 256, downwards; grey ones are
    brought to three equal channels.
    """

    def features(variables: Any, images: UInt8[Array, "b h w c"]) -> dict[str, Array]:
        x = jnp.asarray(images, jnp.int32) * 255 // (levels - 1) / 255
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x
        return network.apply(variables, x.astype(jnp.float32))._asdict()

    return features


def look_at_samples(
    features: Callable[[Any, Array], dict[str, Array]], draw: Callable[[Any, Array], dict]
) -> Callable[[tuple[Any, Any], dict[str, Array]], dict[str, Array]]:
    """look((weights, variables), {"rng": (b,)}) -> features of samples that are not kept.

    "finite" (b,) tells which samples are so in every pixel.
    """

    def look(variables: tuple[Any, Any], rows: dict[str, Array]) -> dict[str, Array]:
        x = draw(variables[1], rows["rng"])["image"]
        found = features(variables[0], stored_levels(x))
        return found | {"finite": jnp.isfinite(x).all(axis=(1, 2, 3))}

    return look


def load_reference(path: str | os.PathLike) -> Reference:
    """Published statistics of InceptionV3's features. Raises: as load_statistics, ValueError."""
    statistics = frechet.load_statistics(path)
    if len(statistics.mean) != NUM_FEATURES:
        raise ValueError(
            f"{path} has {len(statistics.mean)} features an image, InceptionV3 has {NUM_FEATURES}"
        )
    return Reference(statistics)


def _fid(reference: Reference, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = frechet.moments(samples["pool"])
    return {"fid": frechet.gaussian_frechet_distance(reference.moments, found)}


def _fid_infinity(reference: Reference, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = frechet.frechet_distance_infinity(reference.moments, samples["pool"])
    return {"fid_infinity": found.distance, "fid_infinity_standard_error": found.standard_error}


def _inception_score(_: Reference, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {"inception_score": inception_score(samples["logits"]).mean}


def _kid(reference: Reference, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    found = kernel_distance(_features("kid", reference), samples["pool"])
    return {"kid": found.mean, "kid_standard_error": found.standard_error}


def _precision_recall(reference: Reference, samples: Mapping[str, np.ndarray]) -> dict[str, float]:
    real = _features("precision_recall", reference)
    return frechet.precision_recall(real, samples["pool"])._asdict()


METRICS: dict[str, Callable[[Reference, Mapping[str, np.ndarray]], dict[str, float]]] = {
    "fid": _fid,
    "fid_infinity": _fid_infinity,
    "is": _inception_score,
    "kid": _kid,
    "precision_recall": _precision_recall,
}
NEED_FEATURES = ("kid", "precision_recall")
"""Metrics for which the moments of the reference do not suffice."""


def _features(name: str, reference: Reference) -> Float[np.ndarray, "n d"]:
    if reference.pool is None:
        raise ValueError(f"{name} needs the features of real images, not their moments alone")
    return reference.pool
