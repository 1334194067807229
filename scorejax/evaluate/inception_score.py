# SPDX-License-Identifier: Apache-2.0
"""Inception score: high if each sample looks like one class and all classes occur.

Source: Salimans et al. 2016, arXiv:1606.03498, Section 4.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits; one split has standard deviation 0."""

    mean: float
    std: float


def inception_score(logits: Float[ArrayLike, "n k"], *, num_splits: int = 1) -> InceptionScore:
    """exp(mean_x KL(p(y | x) || p(y))) of each split; splits are consecutive samples.

    The score SDE paper uses one split, others use ten; smaller splits have lower scores.
    Raises: ValueError unless 1 <= num_splits <= n.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= num_splits <= len(logits):
        raise ValueError(
            f"inception_score needs logits (n, k) with n at least num_splits={num_splits}; got "
            f"{logits.shape}"
        )
    scores = []
    for part in np.array_split(log_softmax(logits, axis=1), num_splits):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        divergence = np.sum(np.exp(part) * (part - marginal), axis=1)
        scores.append(np.exp(np.mean(divergence)))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
