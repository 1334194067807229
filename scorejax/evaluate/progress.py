# SPDX-License-Identifier: Apache-2.0
"""What a generative model shows of itself while it trains: held-out loss, bits/dim, pictures."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.evaluate import pictures
from scorejax.typing import Array, Batch, PRNGKeyArray


def held_out_mean(
    row_values: Callable[[PRNGKeyArray, Array], Array],
    rng: PRNGKeyArray,
    batches: Iterable[Batch],
) -> float:
    """Mean of row_values(rng, images) -> (b,) over batches, of which only rows in the mask count.

    Batch i gets fold_in(rng, i): with the same key, two models are compared on the same noise.
    """
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        values = np.asarray(row_values(jax.random.fold_in(rng, number), batch["image"]))
        total += float(values[batch["mask"]].sum(dtype=np.float64))
        count += int(batch["mask"].sum())
    return total / count


def finite_summary(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean, its standard error and the number of values that are not finite, over the rest."""
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    error = finite.std(ddof=1) / np.sqrt(len(finite)) if len(finite) > 1 else np.nan
    return {
        name: float(finite.mean()) if len(finite) else float("nan"),
        f"{name}_standard_error": float(error),
        f"{name}_failures": len(values) - len(finite),
    }


def sample_pictures(trajectory: Array, *, num_rows: int = 6) -> dict[str, np.ndarray]:
    """Pictures of a chain (frames, b, h, w, c) of images in [0, 1]: its end, and its way there."""
    trajectory = np.asarray(jnp.asarray(trajectory, jnp.float32))
    return {
        "samples": pictures.image_grid(trajectory[-1]),
        "denoising": pictures.denoising_sequence(trajectory[:, :num_rows]),
    }
