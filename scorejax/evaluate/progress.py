# SPDX-License-Identifier: Apache-2.0
"""Metrics logged during training: held-out loss, bits per dimension, pictures of samples.

A metric is a function (rng, variables) -> Evaluation. The functions here build one from a model's
loss, likelihood or sampler and from held-out images. They compute in chunks on all devices.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.choices import unknown
from scorejax.data.view import DataView
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.random import row_keys
from scorejax.report import Evaluation
from scorejax.typing import Array, Batch, PRNGKeyArray, PyTree, Variables

Metric = Callable[[PRNGKeyArray, Any], Evaluation]
Metrics = dict[str, Callable[[], Metric]]
"""Metrics by name; calling one loads the data that it needs and returns the metric."""


def make_evaluate(
    metrics: Metrics, best_metric: str, *, unranked: Collection[str] = ("samples",)
) -> Callable[..., Evaluation]:
    """Builds evaluate(rng, variables, *frozen): all metrics of the published variables.

    Loads the data of the metrics. `unranked` are those without a scalar of their name; frozen
    arrays are passed on to metric(rng, variables, *frozen).
    Raises: ValueError unless best_metric is "" or a metric with a scalar.
    """
    ranked = metrics.keys() - set(unranked)
    if best_metric not in ("", *ranked):
        raise unknown("best_metric", best_metric, ranked)
    built = [build() for build in metrics.values()]

    def evaluate(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        # One object: metrics may share what they compute from it.
        parts = [metric(rng, variables, *frozen) for metric in built]
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        pictures = {k: v for part in parts for k, v in part.pictures.items()}
        captions = {k: v for part in parts for k, v in part.captions.items()}
        return Evaluation(scalars, pictures, captions=captions)

    return evaluate


def held_out_examples(
    data: DataView, num: int, num_density: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `num` test examples as in training, and the first `num_density` as for densities.

    The same noise is drawn every time.
    """
    rng = np.random.default_rng(0)
    batches = data.held_out_batches(rng, num, batch_size)
    x = np.concatenate([batch[data.field][batch["mask"]] for batch in batches])
    return x, data.density_examples(rng, num_density)


def held_out_rows(
    measure: Callable[[Any, Batch], dict[str, Array]],
    x: np.ndarray,
    *,
    batch_size: int,
    field: str = "image",
) -> Callable[[Any], dict[str, np.ndarray]]:
    """Builds variables -> measure(variables, {field: x, "rng"}) of all rows, `batch_size` at once.

    The same noise is drawn every time: that of a row depends on its number alone.
    """
    stream = make_stream(measure)

    def measured(variables: Any) -> dict[str, np.ndarray]:
        rows = {field: x, "rng": row_keys(jax.random.key(0), len(x))}
        return joined(stream(variables, rows, batch_size))

    return measured


def held_out_loss(
    row_losses: Callable[[Any, Array, Array], Array],
    x: np.ndarray,
    *,
    batch_size: int,
    field: str = "image",
) -> Metric:
    """Mean of row_losses(variables, keys (b,), x (b, *d)) -> (b,), `batch_size` rows at a time.

    The metric ignores its key and draws the noise of `held_out_rows`, so that only the model
    changes the loss.
    """

    def measure(variables: Any, rows: Batch) -> dict[str, Array]:
        return {"loss": row_losses(variables, rows["rng"], rows[field])}

    measured = held_out_rows(measure, x, batch_size=batch_size, field=field)

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        losses = measured(variables)["loss"]
        return Evaluation({"loss": float(losses.mean(dtype=np.float64))}, {})

    return metric


def held_out_density(
    measure: Callable[[Any, Batch], dict[str, Array]],
    x: np.ndarray,
    *,
    names: Sequence[str],
    batch_size: int,
    field: str = "image",
) -> Metric:
    """Means of measure(variables, {field: x, "rng"})[name] (b,), as bits_per_dim or log_prob.

    The noise is that of `held_out_rows`.
    """
    measured = held_out_rows(measure, x, batch_size=batch_size, field=field)

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        rows = measured(variables)
        summaries = [summary(name, rows[name][None]) for name in names]
        return Evaluation({key: value for part in summaries for key, value in part.items()}, {})

    return metric


def chain_pictures(
    trajectory: Callable[[Any, Array], Array],
    num: int,
    *,
    batch_size: int,
    num_rows: int = 6,
    caption: str = "",
) -> Metric:
    """Returns the pictures "samples", the last frame, and "denoising", the first `num_rows` chains.

    `caption` names the sampler, and its evaluations.

    `trajectory` maps (variables, keys (b,)) to (frames, b, h, w, c) in [0, 1]; `num` chains are
    drawn, `batch_size` at a time.
    """

    def chains(variables: Any, rows: Batch) -> dict[str, Array]:
        return {"frames": jnp.moveaxis(trajectory(variables, rows["rng"]), 0, 1)}

    stream = make_stream(chains)

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        from scorejax.evaluate import pictures  # Imported here: it takes a second.

        samples, ways = [], []
        for chunk in stream(variables, {"rng": row_keys(rng, num)}, batch_size):
            missing = num_rows - sum(map(len, ways))
            # Copies, since a view would keep all frames: 8 GB of 64 samples of 1024 pixels.
            samples.append(chunk["frames"][:, -1].copy())
            ways.append(chunk["frames"][:missing].copy())
        sequence = np.moveaxis(np.concatenate(ways), 1, 0)
        shown = {"samples": pictures.image_grid(np.concatenate(samples))}
        shown["denoising"] = pictures.denoising_sequence(sequence)
        captions = {"samples": f"{num} samples by {caption}", "denoising": caption}
        return Evaluation({}, shown, captions=captions if caption else {})

    return metric


def sample_pictures(
    draw: Callable[[Any, Array], dict[str, Array]], num: int, *, batch_size: int, sampler: str
) -> Metric:
    """The picture "samples" of `num` draws, `batch_size` at a time; the caption has the `sampler`.

    draw(variables, keys (b,)) returns {"image": (b, h, w, c) in [0, 1], ...}.
    """
    stream = make_stream(lambda variables, rows: draw(variables, rows["rng"]))

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        from scorejax.evaluate import pictures  # Imported here: it takes a second.

        drawn = joined(stream(variables, {"rng": row_keys(rng, num)}, batch_size))
        shown = {"samples": pictures.image_grid(drawn["image"])}
        return Evaluation({}, shown, captions={"samples": sample_caption(sampler, drawn["nfe"])})

    return metric


def sample_caption(sampler: str, nfe: np.ndarray) -> str:
    """The caption of samples: their number, the sampler, and its mean number of evaluations."""
    by = f" by {sampler}" if sampler else ""
    return f"{len(nfe)} samples{by}, {np.mean(nfe):.0f} evaluations each"


def summary(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean of values (repeats, n), its standard error, and the number of non-finite values.

    Each example is averaged over its repeats first, since repeats are not independent: the standard
    error is over the n examples. Non-finite values are left out of the mean and counted.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    counted = finite.any(axis=0)
    means = np.where(finite, values, 0).sum(axis=0)[counted] / finite.sum(axis=0)[counted]
    error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
    return {
        name: float(means.mean()) if len(means) else float("nan"),
        f"{name}_standard_error": float(error),
        f"{name}_failures": int(np.sum(~finite)),
    }


def remembered(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Keeps the result of the last argument, told by identity, for metrics that share a step."""
    last: list[Any] = []

    def call(argument: Any) -> Any:
        if not last or last[0] is not argument:
            last[:] = [argument, fn(argument)]
        return last[1]

    return call
