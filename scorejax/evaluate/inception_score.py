# SPDX-License-Identifier: Apache-2.0
"""The inception score: samples should each look like one class, and together like all of them.

Source: Salimans et al. 2016, arXiv:1606.03498, Section 4.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.special import log_softmax, logsumexp


class InceptionScore(NamedTuple):
    """Mean over the splits, and their standard deviation: 0 for one split."""

    mean: float
    std: float


def inception_score(logits: Float[ArrayLike, "n k"], *, num_splits: int = 1) -> InceptionScore:
    """exp(mean of KL(p(y | x), p(y))) of each split of the samples, in the order in which they are.

    The score-SDE paper takes all samples at once, others ten splits: a split has fewer samples, and
    a lower score. Raises: ValueError unless every split has a sample.
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
