# SPDX-License-Identifier: Apache-2.0
"""Sample quality in the features of FID's InceptionV3: the metrics by name, from features alone."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.evaluate import frechet
from scorejax.evaluate.inception_score import inception_score
from scorejax.evaluate.kernel_distance import kernel_distance
from scorejax.models.inception import Inception


class Reference(NamedTuple):
    """Real images: the moments of their features and, unless only these are known, the features."""

    moments: frechet.Moments
    pool: np.ndarray | None = None


def inception_features(network: Inception) -> Callable[[Any, dict[str, Array]], dict[str, Array]]:
    """features(variables, {"image": (b, h, w, c) in [0, 1]}) -> pool (b, 2048), logits (b, 1008).

    Images are brought to 256 levels first, downwards, as the published evaluations store them; grey
    ones to three equal channels.
    """

    def features(variables: Any, rows: dict[str, Array]) -> dict[str, Array]:
        x = jnp.floor(255 * jnp.clip(rows["image"], 0, 1)) / 255
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x
        return network.apply(variables, x)._asdict()

    return features


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
