# SPDX-License-Identifier: Apache-2.0
"""FID and its relatives of a sampler: draws, extracts features, compares with real images.

Only moments of the features are kept, and the features for the metrics that need them. Each chunk
of features is saved, so that a killed computation resumes.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from scorejax.choices import require_known
from scorejax.data.images import Streamed
from scorejax.data.view import ImageView
from scorejax.evaluate import frechet, sample_quality
from scorejax.evaluate.chunks import make_stream
from scorejax.evaluate.parts import Parts
from scorejax.evaluate.progress import Metric, Metrics
from scorejax.evaluate.sample_quality import KEPT, METRICS, NEED_FEATURES, Features
from scorejax.interop.networks import inception
from scorejax.models.inception import Inception
from scorejax.random import row_keys
from scorejax.runs import Run
from scorejax.typing import Array, PyTree


class Judge(NamedTuple):
    """Names of metrics, a sampler, InceptionV3 with its weights, and real images or moments."""

    metrics: tuple[str, ...]
    draw: Callable[[PyTree, Array], dict[str, Array]]
    """(variables, keys (b,)) -> {"image": (b, h, w, c) in [0, 1]}."""
    sampler: dict[str, Any]
    """Name and options of the sampler."""
    network: Inception
    weights: PyTree
    data: ImageView
    real: np.ndarray | Streamed | None
    """All training images (n, h, w, c) as uint8, unless there is a reference."""
    reference: Features | None


def choose_metrics(
    names: Sequence[str], builders: Metrics, further: Collection[str] = ()
) -> tuple[list[Metric], list[str]]:
    """Builds the named metrics, all of `builders` by default; returns apart the names in `further`.

    Raises: ValueError for an unknown name, and as the builders, which read data.
    """
    names = dict.fromkeys(names or builders)
    for name in names:
        require_known("metric", name, {*builders, *further})
    chosen = [builders[name]() for name in names if name in builders]
    return chosen, [name for name in names if name not in builders]


def load_judge(
    metrics: Sequence[str],
    model: Any,
    sampler: str = "",
    nfe: int = 0,
    *,
    weights: str | os.PathLike = "",
    reference: str | os.PathLike = "",
) -> Judge:
    """Binds a model's sampler; reads InceptionV3's weights, and statistics or the training images.

    The model is a `capabilities.DrawsSamples` with `data`, an `ImageView`.
    Raises: ValueError, one line, for an unknown sampler, if the weights are not given or damaged,
    or if a metric needs features of real images and the reference has only moments;
    FileNotFoundError without a file or the training images.
    """
    if not weights:
        raise ValueError(f"inception is missing: {inception.WHERE}")
    lacking = [name for name in metrics if name in NEED_FEATURES]
    if reference and lacking:
        raise ValueError(f"{lacking[0]} needs real images, not a reference of statistics")
    draw, options = model.sampler(sampler, nfe=nfe), {"sampler": sampler, "nfe": nfe}
    moments = sample_quality.load_reference(reference) if reference else None
    network, variables = inception.load_inception(weights)
    real = None if moments else model.data.streamed("train")
    return Judge(tuple(metrics), draw, options, network, variables, model.data, real, moments)


def sample_report(
    judge: Judge, run: Run, num: int, *, seed: int, batch_size: int, out: str
) -> tuple[dict[str, Any], list[Parts]]:
    """Metrics of `num` samples of a run, and parts of the computation, to be removed in the end.

    NaN pixels count as black; "num_not_finite" counts the samples with any non-finite pixel.
    Stderr, and "caveats", tell of sets that are too small for FID.
    Without a reference, samples are compared with the training images, whose moments are saved to
    <out>_reference.npz.
    """
    num_real = None if judge.real is None else len(judge.real)
    caveats = sample_quality.caveats(judge.metrics, num, num_real)
    for line in caveats if jax.process_index() == 0 else []:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    look = sample_quality.look_at_samples(
        sample_quality.inception_features(judge.network, **_precision(run)), judge.draw
    )
    identity = {"config": run.config.to_dict(), **judge.sampler}
    identity |= {"seed": seed, "num": num, "batch_size": batch_size, **_precision(run)}
    if run.config.get("corrector") == "batch_langevin":
        identity["devices"] = jax.device_count()  # Its step size is a mean over a device.
    variables, rows = (judge.weights, run.variables), {"rng": row_keys(jax.random.key(seed), num)}
    parts = [Parts(f"{out}_samples", identity, variables)]
    chunks = make_stream(look)(variables, rows, batch_size, "samples", parts[0])
    kept = {KEPT[name] for name in judge.metrics if name in KEPT}
    samples = sample_quality.summarized(chunks, {"finite", *kept})
    reference = judge.reference
    if reference is None:
        identity = {"data": dataclasses.asdict(judge.data), "batch_size": batch_size}
        identity |= _precision(run)
        parts.append(Parts(f"{out}_reference", identity, judge.weights))
        reference = real_features(judge, batch_size, parts[1], **_precision(run))
        if jax.process_index() == 0:
            frechet.save_statistics(f"{out}_reference.npz", reference.moments)
    report = {"num_samples": num, "num_not_finite": int((~samples.finite).sum())}
    for name in judge.metrics:
        report |= METRICS[name](reference, samples)
    return report | ({"caveats": caveats} if caveats else {}), parts


def _precision(run: Run) -> dict[str, str]:
    return {"matmul_precision": run.config.get("eval_matmul_precision", "highest")}


def real_features(judge: Judge, batch_size: int, parts: Parts, **precision: str) -> Features:
    """Features of the training images: moments, and all of them if a metric needs them."""
    features = sample_quality.inception_features(judge.network, judge.data.levels, **precision)
    look = lambda weights, rows: {"pool": features(weights, rows["image"])["pool"]}
    rows = {"image": judge.real}
    chunks = make_stream(look)(judge.weights, rows, batch_size, "images", parts)
    kept = ["pool"] if set(judge.metrics) & set(NEED_FEATURES) else []
    return sample_quality.summarized(chunks, kept)
