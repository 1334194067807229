# SPDX-License-Identifier: Apache-2.0
"""Scores of a classifier's outputs by name. High scores mean normal, low ones a likely failure.

`SCORES` gives all of them one face, (features, logits, labels) -> parameters and (parameters,
features, logits) -> scores, so that none needs the classifier. `odin` needs it, and stands apart.
Logits of integers, as quantised networks have, are taken as real numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from scorejax.failures import feature_scores
from scorejax.failures.feature_scores import as_real
from scorejax.typing import PyTree


@jax.jit
def max_softmax(logits: Num[ArrayLike, "b k"]) -> Float[Array, "b"]:
    """Log of the largest softmax probability, in nats.

    Orders rows as the probability itself does, but does not round near 1, where many rows would
    tie. Source: Hendrycks & Gimpel 2017, arXiv:1610.02136.
    """
    logits = as_real(logits)
    # The largest logit adds exactly 1 to the sum. Left out, log1p keeps what the others add.
    best = jnp.argmax(logits, axis=1)
    ratios = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    is_best = jnp.arange(logits.shape[1])[None] == best[:, None]
    return -jnp.log1p(jnp.sum(jnp.where(is_best, 0, ratios), axis=1))


@jax.jit
def negative_entropy(logits: Num[ArrayLike, "b k"]) -> Float[Array, "b"]:
    """Minus the entropy of the softmax probabilities, in nats."""
    log_probability = jax.nn.log_softmax(as_real(logits), axis=1)
    return jnp.sum(jnp.exp(log_probability) * log_probability, axis=1)


@jax.jit
def max_logit(logits: Num[ArrayLike, "b k"]) -> Float[Array, "b"]:
    """The largest logit. Source: Hendrycks et al. 2022, arXiv:1911.11132."""
    return jnp.max(as_real(logits), axis=1)


@jax.jit
def energy(logits: Num[ArrayLike, "b k"], temperature: float = 1.0) -> Float[Array, "b"]:
    """Minus the free energy, T log sum exp(logits / T).

    Source: Liu et al. 2020, arXiv:2010.03759, Eq. 4.
    """
    return temperature * jax.nn.logsumexp(as_real(logits) / temperature, axis=1)


def odin(
    logits_fn: Callable[[Array], Array],
    x: Float[Array, "b *d"],
    *,
    temperature: float = 1000.0,
    eps: float = 0.0014,
) -> Float[Array, "b"]:
    """`max_softmax` of logits / T, after a step of eps that raises it; costs a gradient.

    The step may leave the range of images, as in the published code.
    Source: Liang et al. 2018, arXiv:1706.02690, Eqs. 1-2.
    """
    scaled = lambda x: max_softmax(logits_fn(x) / temperature)
    gradient = jax.grad(lambda x: jnp.sum(scaled(x)))(x)
    return scaled(x + eps * jnp.sign(gradient))


class Score(NamedTuple):
    """A score of features and logits, and how it is fitted; parameters are a tree of arrays."""

    fit: Callable[[Float[ArrayLike, "n d"], Float[ArrayLike, "n k"], Int[ArrayLike, "n"]], PyTree]
    score: Callable[[PyTree, Float[ArrayLike, "b d"], Float[ArrayLike, "b k"]], ArrayLike]


def _of_logits(score: Callable[[ArrayLike], Array]) -> Score:
    return Score(
        lambda features, logits, labels: (), lambda params, features, logits: score(logits)
    )


def _of_features(fit: Callable, score: Callable) -> Score:
    return Score(
        lambda features, logits, labels: fit(features, labels, num_classes=logits.shape[1]),
        lambda params, features, logits: score(params, features),
    )


SCORES: dict[str, Score] = {
    "max_softmax": _of_logits(max_softmax),
    "negative_entropy": _of_logits(negative_entropy),
    "max_logit": _of_logits(max_logit),
    "energy": _of_logits(energy),
    "mahalanobis": _of_features(feature_scores.fit_mahalanobis, feature_scores.mahalanobis),
    "relative_mahalanobis": _of_features(
        feature_scores.fit_relative_mahalanobis, feature_scores.relative_mahalanobis
    ),
    "nearest_neighbours": Score(
        lambda features, logits, labels: feature_scores.fit_nearest_neighbours(features),
        lambda params, features, logits: feature_scores.nearest_neighbours(params, features),
    ),
    "virtual_logit": Score(
        lambda features, logits, labels: feature_scores.fit_virtual_logit(features, logits),
        feature_scores.virtual_logit,
    ),
    "stored_patterns": Score(
        feature_scores.fit_stored_patterns, feature_scores.stored_pattern_energy
    ),
}
"""Scores by name, with the defaults of their papers: MSP, entropy, MaxLogit, energy, Mahalanobis,
RMD, kNN, ViM and SHE. Labels are read by "mahalanobis", "relative_mahalanobis", "stored_patterns".
"""
