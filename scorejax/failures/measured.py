# SPDX-License-Identifier: Apache-2.0
"""Scores of rows that do not depend on the rows beside them, to the last bit."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import Float

from scorejax.data.features import FeaturePreparation
from scorejax.density import get_density
from scorejax.evaluate.chunks import joined, make_stream
from scorejax.failures.scores import SCORES
from scorejax.typing import PyTree

AT_ONCE = 256
"""Rows that are scored together, always as many: rounding, and so ties, do not depend on others."""


def measured(
    density: str,
    preparation: FeaturePreparation,
    params: PyTree,
    rows: dict[str, Float[np.ndarray, "n _"]],
    logit_score: str | None = None,
) -> dict[str, Float[np.ndarray, "n"]]:
    """The "density" of features `rows["x"]` in nats, and minus the norms that it does not see.

    All are -inf where features are finite, and so far away that arithmetic gives NaN. "residual"
    is outside of the principal components, "dead" on units without variance. With `logit_score`,
    that of `rows["logits"]` as well, by its name.
    """
    num = len(rows["x"])
    order = np.minimum(np.arange(num + -num % AT_ONCE), num - 1)
    filled = {name: values[order] for name, values in rows.items()}
    found = joined(_score_stream(density, preparation, logit_score)(params, filled, AT_ONCE))
    found = {name: np.asarray(values[:num], float) for name, values in found.items()}
    # Rows so far away that a flow computes inf - inf are the least likely of all.
    for name in ("density", "residual", "dead"):
        found[name] = np.where(np.isnan(found[name]), -np.inf, found[name])
    return found


@functools.lru_cache(maxsize=8)
def _score_stream(
    density: str, preparation: FeaturePreparation, logit_score: str | None
) -> Callable[..., Iterator]:
    """Compiled once for a fitted detector, however often it is asked."""
    log_prob = get_density(density).log_prob

    def measure(params: PyTree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        prepared = preparation(rows["x"])  # Without noise, which would not be the row's own.
        found = {"residual": -prepared.residual_norm, "dead": -prepared.dead_norm}
        found["density"] = log_prob(params, prepared.x) + preparation.log_det
        if logit_score is not None:
            found[logit_score] = SCORES[logit_score].score((), rows["x"], rows["logits"])
        return found

    return make_stream(measure)
