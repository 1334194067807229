# SPDX-License-Identifier: Apache-2.0
"""Density by a masked autoregressive flow, fitted to rows by maximum likelihood.

Source: Papamakarios et al. 2017, arXiv:1705.07057.
"""

from jaxtyping import PRNGKeyArray

from scorejax.density.fitting import TRAINING, Training
from scorejax.density.normalised import (
    NormalisedDensity,
    fit_network,
    log_prob,
    masked_units,
    sample,
)
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.maf import MaskedAutoregressiveFlow

__all__ = ["fit", "log_prob", "sample"]


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    num_blocks: int = 5,
    hidden: int | None = None,
    num_hidden: int = 2,
    max_log_scale: float = 3.0,
    training: Training = TRAINING,
) -> NormalisedDensity:
    """Fits the flow to rows of about mean 0 and variance 1; `hidden` is as in `masked_units`.

    Raises: ValueError for rows as `rows.checked_rows`, or an option out of range.
    """
    x = checked_rows(x)
    hidden = masked_units(hidden, x.shape[1])
    network = MaskedAutoregressiveFlow(
        x.shape[1], num_blocks, hidden, num_hidden, max_log_scale=max_log_scale
    )
    return fit_network(rng, network, x, training)
