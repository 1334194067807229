# SPDX-License-Identifier: Apache-2.0
"""Noise levels and step sizes that NCSNv2's rules choose for a data set, before training.

Source: Song & Ermon 2020, arXiv:2006.09011, techniques 1, 2 and 4.
"""

import math

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from scorejax import distances
from scorejax.report import Evaluation
from scorejax.schedules import (
    langevin_step_size,
    langevin_steps,
    langevin_variance_ratio,
    ncsnv2_sigmas,
    steady_variance_ratio,
)
from scorejax.train import parallel

NUM_PAIRS = 20_000
ROWS_PER_DEVICE = 1024


def ladder_report(
    rng: PRNGKeyArray,
    images: Float[np.ndarray, "n h w c"],
    *,
    sigma_min: float,
    steps_per_level: int | None = None,
    max_nfe: int | None = None,
    flips: bool = False,
    overlap: float = 0.567,
) -> Evaluation:
    """Applies the rules to images in the model's value range; `flips` adds their mirror images.

    Give either `steps_per_level`, or `max_nfe`, the largest number of score calls of a chain.

    Scalars: `sigma_max`, the exact largest distance; `distance_of_999_in_1000_pairs`, the 99.9 %
    quantile over random pairs, which a single outlier among 2000 images cannot set; `ratio` of
    adjacent levels and their number `num_scales`; `step_size`, and `relative_step`, its ratio to
    sigma_min^2; `variance_ratio`, the variance after one level over its target, starting from the
    exact distribution one level up; `steady_variance_ratio`, the same after many levels; `nfe`, the
    score calls of a chain with its final denoising step.

    Raises: ValueError if not exactly one of the two is given, or as
    `distances.max_pairwise_distance` and the rules in `schedules`.
    """
    if (steps_per_level is None) == (max_nfe is None):
        raise ValueError(
            "ladder_report needs either steps_per_level or max_nfe; got "
            f"steps_per_level={steps_per_level}, max_nfe={max_nfe}."
        )
    images = np.asarray(images, np.float32)
    largest, dim = largest_distance(images, flips=flips), math.prod(images.shape[1:])
    pairs = _random_distances(rng, _with_flips(images, flips))
    sigmas = ncsnv2_sigmas(sigma_min, largest, dim, overlap=overlap)
    # The actual ratio of the ladder, since its number of levels is rounded.
    ratio = float(sigmas[0] / sigmas[1])
    if steps_per_level is None:
        steps_per_level = langevin_steps(len(sigmas), max_nfe - 1)
    step = langevin_step_size(ratio, steps_per_level)
    scalars = {
        "num_images": len(images),
        "dim": dim,
        "sigma_max": largest,
        "distance_of_999_in_1000_pairs": float(np.quantile(pairs, 0.999)),
        "sigma_min": sigma_min,
        "ratio": ratio,
        "num_scales": len(sigmas),
        "steps_per_level": steps_per_level,
        "step_size": step * sigma_min**2,
        "relative_step": step,
        "variance_ratio": langevin_variance_ratio(step, ratio, steps_per_level),
        "steady_variance_ratio": steady_variance_ratio(step, ratio, steps_per_level),
        "nfe": len(sigmas) * steps_per_level + 1,
    }
    return Evaluation(scalars, _pictures(sigmas, pairs))


def largest_distance(images: Float[np.ndarray, "n *d"], *, flips: bool = False) -> float:
    """Largest distance between two images; with `flips`, mirror images count as images too.

    Uses all devices and is exact up to rounding. Each device holds all images and a block of
    distances. `flips` needs images (n, h, w, c).
    """
    points = distances.centred(_with_flips(images, flips))
    # Mirroring both images keeps their distance, so only unmirrored rows need to be compared.
    rows = points[: len(images)]
    farthest = parallel.map_over_devices(lambda points, rows: distances.farthest(rows, points))
    block, points = ROWS_PER_DEVICE * jax.device_count(), parallel.share(points)
    starts = range(0, len(rows), block)
    return max(float(farthest(points, rows[start : start + block]).max()) for start in starts)


def _with_flips(images: Float[np.ndarray, "n *d"], flips: bool) -> Float[np.ndarray, "m *d"]:
    return np.concatenate([images, images[:, :, ::-1]]) if flips else images


def _random_distances(
    rng: PRNGKeyArray, images: Float[np.ndarray, "n *d"]
) -> Float[np.ndarray, "pairs"]:
    first, second = np.asarray(jax.random.randint(rng, (2, NUM_PAIRS), 0, len(images)))
    # One pair at a time: 20,000 differences of large images would not fit into memory.
    pairs = zip(first, second, strict=True)
    return np.array([np.linalg.norm(images[a] - images[b]) for a, b in pairs if a != b])


def _pictures(
    sigmas: Float[np.ndarray, "levels"], pairs: Float[np.ndarray, "pairs"]
) -> dict[str, np.ndarray]:
    from scorejax.evaluate import pictures  # Imported here: matplotlib takes a second.

    levels = np.arange(1, len(sigmas) + 1)
    curve = pictures.curve_picture(
        levels, {"log10 sigma": np.log10(sigmas)}, xlabel="level", ylabel="log10 sigma"
    )
    histogram = pictures.histogram_picture({"pairs of images": pairs}, xlabel="distance")
    return {"ladder": curve, "distances": histogram}
