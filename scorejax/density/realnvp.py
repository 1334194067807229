# SPDX-License-Identifier: Apache-2.0
"""Density by RealNVP with Glow's linear maps, fitted to rows by maximum likelihood.

Source: Dinh et al. 2017, arXiv:1605.08803; Kingma and Dhariwal 2018, arXiv:1807.03039.
"""

from jaxtyping import PRNGKeyArray

from scorejax.density.fitting import TRAINING, Training
from scorejax.density.normalised import NormalisedDensity, fit_network, log_prob, sample
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.realnvp import RealNVP

__all__ = ["fit", "log_prob", "sample"]


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    num_blocks: int = 8,
    hidden: int = 256,
    num_hidden: int = 2,
    max_log_scale: float = 2.0,
    training: Training = TRAINING,
) -> NormalisedDensity:
    """Fits the flow to rows (n, d), d >= 2.

    Raises: ValueError for rows as `rows.checked_rows`, or an option out of range.
    """
    x = checked_rows(x)
    network = RealNVP(x.shape[1], num_blocks, hidden, num_hidden, max_log_scale)
    return fit_network(rng, network, x, training)
