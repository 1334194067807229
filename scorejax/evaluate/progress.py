# SPDX-License-Identifier: Apache-2.0
"""What a generative model shows of itself while it trains: held-out loss, bits/dim, samples.

A metric is a function (rng, variables) -> Evaluation; the makers here take what a system can do and
bind it to held-out images.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from scorejax.choices import unknown
from scorejax.report import Evaluation
from scorejax.train.state import TrainState, averaged
from scorejax.typing import Array, Batch, PRNGKeyArray

Metric = Callable[[PRNGKeyArray, Any], Evaluation]
Metrics = dict[str, Callable[[], Metric]]
"""Metrics by name; calling one loads the data that it needs and returns the metric."""


def make_evaluate(
    metrics: Metrics, best_metric: str, *, unranked: Collection[str] = ("samples",)
) -> Callable[[PRNGKeyArray, TrainState], Evaluation]:
    """Builds evaluate(rng, state): all metrics of the averaged parameters; loads their data.

    `unranked` are the metrics without a scalar of their name.
    Raises: ValueError unless best_metric is "" or a metric with a scalar.
    """
    ranked = metrics.keys() - set(unranked)
    if best_metric not in ("", *ranked):
        raise unknown("best_metric", best_metric, ranked)
    built = [build() for build in metrics.values()]

    def evaluate(rng: PRNGKeyArray, state: TrainState) -> Evaluation:
        variables = averaged(state)  # One object: metrics may share what they compute of it.
        parts = [metric(rng, variables) for metric in built]
        scalars = {name: value for part in parts for name, value in part.scalars.items()}
        return Evaluation(scalars, {k: v for part in parts for k, v in part.pictures.items()})

    return evaluate


def held_out_loss(
    row_losses: Callable[[Any, PRNGKeyArray, Array], Array],
    batches: Sequence[Batch],
    *,
    field: str = "image",
) -> Metric:
    """Mean of row_losses(variables, rng, batch[field]) -> (b,) over rows that batches do not mask.

    The noise is the same whatever the key: what moves the loss is the model.
    """

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            rng = jax.random.key(number)
            losses = np.asarray(row_losses(variables, rng, batch[field]))
            total += float(losses[batch["mask"]].sum(dtype=np.float64))
            count += int(batch["mask"].sum())
        return Evaluation({"loss": total / count}, {})

    return metric


def held_out_density(
    measure: Callable[[Any, Batch], dict[str, Array]], x: Array, *, name: str, field: str = "image"
) -> Metric:
    """Mean of measure(variables, {field: x, "rng"})[name] (b,): bits_per_dim, or log_prob in nats.

    The noise is the same whatever the key, as in `held_out_loss`.
    """

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        rng = jax.random.split(jax.random.key(0), len(x))
        rows = measure(variables, {field: x, "rng": rng})
        return Evaluation(summary(name, rows[name][None]), {})

    return metric


def chain_pictures(
    trajectory: Callable[[Any, PRNGKeyArray], Array], *, num_rows: int = 6
) -> Metric:
    """Pictures of trajectory(variables, rng) -> (frames, b, h, w, c): its end and its way there."""

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once training runs.

        frames = np.asarray(trajectory(variables, rng))
        shown = {"samples": pictures.image_grid(frames[-1])}
        shown["denoising"] = pictures.denoising_sequence(frames[:, :num_rows])
        return Evaluation({}, shown)

    return metric


def summary(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean of values (repeats, n), its standard error over the n, and how many are not finite.

    An example is averaged over its repeats first, since they are not independent. Those that failed
    are left out, hence the count.
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
