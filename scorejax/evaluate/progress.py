# SPDX-License-Identifier: Apache-2.0
"""What a generative model shows of itself while it trains: held-out loss, bits/dim, samples.

A metric is a function (rng, variables) -> Evaluation; the makers here take what a system can do and
bind it to held-out images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from scorejax.report import Evaluation
from scorejax.typing import Array, Batch, PRNGKeyArray

Metric = Callable[[PRNGKeyArray, Any], Evaluation]


def held_out_loss(
    row_losses: Callable[[Any, PRNGKeyArray, Array], Array], batches: Sequence[Batch]
) -> Metric:
    """Mean of row_losses(variables, rng, images) -> (b,) over the rows that batches do not mask.

    The noise is the same whatever the key: what moves the loss is the model.
    """

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            rng = jax.random.key(number)
            losses = np.asarray(row_losses(variables, rng, batch["image"]))
            total += float(losses[batch["mask"]].sum(dtype=np.float64))
            count += int(batch["mask"].sum())
        return Evaluation({"loss": total / count}, {})

    return metric


def held_out_bits(measure: Callable[[Any, Batch], dict[str, Array]], images: Array) -> Metric:
    """Bits per dimension of images, by measure(variables, {"image", "rng"}) -> bits_per_dim (b,).

    The noise is the same whatever the key, as in `held_out_loss`.
    """

    def metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        rng = jax.random.split(jax.random.key(0), len(images))
        rows = measure(variables, {"image": images, "rng": rng})
        return Evaluation(summary("bits_per_dim", rows["bits_per_dim"][None]), {})

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
