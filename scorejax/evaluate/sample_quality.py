# SPDX-License-Identifier: Apache-2.0
"""Sample quality in the features of FID's InceptionV3: FID, inception score, KID and others."""

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from scorejax.evaluate import frechet
from scorejax.evaluate.inception_score import inception_score
from scorejax.evaluate.kernel_distance import kernel_distance
from scorejax.models.inception import NUM_FEATURES, Inception


class Features(NamedTuple):
    """Features of images: their moments, and what else of them is kept."""

    moments: frechet.Moments
    pool: np.ndarray | None = None
    """Features (n, 2048)."""
    logits: np.ndarray | None = None
    """Logits (n, 1008)."""
    finite: np.ndarray | None = None
    """Whether every pixel is finite, (n,)."""


def summarized(chunks: Iterable[Mapping[str, np.ndarray]], keep: Collection[str]) -> Features:
    """Moments of the features "pool" of all chunks, and the entries `keep`, joined.

    Memory is that of one chunk, a covariance and what is kept.
    Raises: ValueError unless the features are finite, of two images at least.
    """
    running, kept = frechet.RunningMoments(), {name: [] for name in keep}
    for chunk in chunks:
        running.add(chunk["pool"])
        for name, parts in kept.items():
            parts.append(chunk[name])
        del chunk  # Or it lives while the next one is computed.
    joined = {name: np.concatenate(parts) for name, parts in kept.items()}
    return Features(running.moments(), **joined)


def stored_levels(x: Float[Array, "b h w c"]) -> UInt8[Array, "b h w c"]:
    """Rounds images in [0, 1] down to 256 levels, as the published evaluations store them.

    NaN becomes black, so that a failed sample counts like any other.
    """
    return jnp.floor(255 * jnp.clip(jnp.nan_to_num(x), 0, 1)).astype(jnp.uint8)


def inception_features(
    network: Inception, levels: int = 256, *, matmul_precision: str = "highest"
) -> Callable[[Any, Array], dict[str, Array]]:
    """Returns features(variables, images) -> {"pool": (b, 2048), "logits": (b, 1008)}.

    Images (b, h, w, c) are uint8 with `levels` grey levels, rescaled to 256 and rounded down. A
    single channel is repeated three times. `matmul_precision` is one of
    `numerics.MATMUL_PRECISIONS`; published statistics come from float32, which the default keeps.
    """

    def features(variables: Any, images: UInt8[Array, "b h w c"]) -> dict[str, Array]:
        x = jnp.asarray(images, jnp.int32) * 255 // (levels - 1) / 255
        x = jnp.broadcast_to(x, (*x.shape[:-1], 3)) if x.shape[-1] == 1 else x
        with jax.default_matmul_precision(matmul_precision):
            return network.apply(variables, x.astype(jnp.float32))._asdict()

    return features


def look_at_samples(
    features: Callable[[Any, Array], dict[str, Array]], draw: Callable[[Any, Array], dict]
) -> Callable[[tuple[Any, Any], dict[str, Array]], dict[str, Array]]:
    """Returns look((weights, variables), {"rng": (b,)}), which draws samples and keeps features.

    The result has the entries of `features`, and "finite" (b,): whether every pixel of a sample is
    finite. The samples themselves are discarded.
    """

    def look(variables: tuple[Any, Any], rows: dict[str, Array]) -> dict[str, Array]:
        x = draw(variables[1], rows["rng"])["image"]
        finite = jnp.isfinite(x).all(axis=(1, 2, 3))
        return features(variables[0], stored_levels(x)) | {"finite": finite}

    return look


def load_reference(path: str | os.PathLike) -> Features:
    """Reads published statistics of InceptionV3's features.

    Raises: as `frechet.load_statistics`; ValueError if they are not of 2048 features.
    """
    statistics = frechet.load_statistics(path)
    if len(statistics.mean) != NUM_FEATURES:
        raise ValueError(
            f"{path} has {len(statistics.mean)} features per image, InceptionV3 has {NUM_FEATURES}"
        )
    return Features(statistics)


def caveats(metrics: Collection[str], num: int, num_real: int | None = None) -> list[str]:
    """A line for each set of images that is too small for FID; None real images are moments.

    The covariance of fewer images than there are features is singular, and the bias of FID is then
    no longer small beside the distances of good models.
    """
    if not {"fid", "fid_infinity"} & set(metrics):
        return []
    return [
        f"FID of {count} {kind}, fewer than its {NUM_FEATURES} features, is biased far upwards; "
        "compare it only with FIDs of as many, and take 50000 for published ones."
        for kind, count in (("samples", num), ("real images", num_real))
        if count is not None and count < NUM_FEATURES
    ]


def _fid(reference: Features, samples: Features) -> dict[str, float]:
    return {"fid": frechet.gaussian_frechet_distance(reference.moments, samples.moments)}


def _fid_infinity(reference: Features, samples: Features) -> dict[str, float]:
    distance, error = frechet.frechet_distance_infinity(reference.moments, samples.pool)
    return {"fid_infinity": distance, "fid_infinity_standard_error": error}


def _inception_score(_: Features, samples: Features) -> dict[str, float]:
    return {"inception_score": inception_score(samples.logits).mean}


def _kid(reference: Features, samples: Features) -> dict[str, float]:
    mean, error = kernel_distance(_features("kid", reference), samples.pool)
    return {"kid": mean, "kid_standard_error": error}


def _precision_recall(reference: Features, samples: Features) -> dict[str, float]:
    real = _features("precision_recall", reference)
    return frechet.precision_recall(real, samples.pool)._asdict()


METRICS: dict[str, Callable[[Features, Features], dict[str, float]]] = {
    "fid": _fid,
    "fid_infinity": _fid_infinity,
    "is": _inception_score,
    "kid": _kid,
    "precision_recall": _precision_recall,
}
"""(real images, samples) -> scalars."""
NEED_FEATURES = ("kid", "precision_recall")
"""Metrics that need the features of real images, not just their moments."""
KEPT = {"fid_infinity": "pool", "is": "logits", "kid": "pool", "precision_recall": "pool"}
"""Metrics that need more of the samples than the moments of their features, and which entry."""


def _features(name: str, reference: Features) -> Float[np.ndarray, "n d"]:
    if reference.pool is None:
        raise ValueError(f"{name} needs the features of real images, not their moments alone")
    return reference.pool
