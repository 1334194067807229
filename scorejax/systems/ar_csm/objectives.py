# SPDX-License-Identifier: Apache-2.0
"""The objectives of a network of contexts and a head, and its causal estimate of clean values."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.data.grey_levels import GreyLevels
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.numerics import expand, sum_except_batch
from scorejax.objectives.autoregressive_likelihood import level_log_prob
from scorejax.objectives.composite import composite_score_matching, denoising_composite
from scorejax.random import Rng, draw_rows, normal, split
from scorejax.typing import Array, Variables


class Bound(NamedTuple):
    """The network with its variables: contexts(x[, condition]), functions of (u, c[, sigma])."""

    contexts: Callable[..., Array]
    head: Callable[..., Array]
    log_prob: Callable[..., Array]
    cdf: Callable[..., Array]
    variance: Callable[..., Array]


def apply(network: AutoregressiveModel, variables: Variables, method: str) -> Callable[..., Array]:
    """A method of the network with these variables."""
    params, state = variables
    return functools.partial(network.apply, {"params": params, **state}, method=method)


Objective = Callable[[Bound, Rng, Array], Array]
"""(bound network, rng, x (b, *d)) -> (b,)."""


def score_matching(noise: float, *, weighted: bool) -> Objective:
    """Builds exact composite score matching of data with N(0, noise^2) added.

    `weighted` multiplies each term by the head's variance in its context.
    """

    def objective(bound: Bound, rng: Rng, x: Array) -> Array:
        x = x + noise * normal(rng, x.shape, x.dtype)
        weight = bound.variance if weighted else None
        return composite_score_matching(bound.head, bound.contexts, x, weight=weight)

    return objective


def denoising(sigmas: np.ndarray, *, noisy_context: bool) -> Objective:
    """Builds denoising at noise levels whose logarithms are uniform over the range of `sigmas`.

    A level is drawn for each dimension, or for each example if contexts are of noisy values, which
    then know the level.
    """

    def objective(bound: Bound, rng: Rng, x: Array) -> Array:
        level_rng, rng = split(rng)
        shape = x.shape[:1] if noisy_context else x.shape
        share = draw_rows(jax.random.uniform, level_rng, shape)
        sigma = sigmas[-1] * (sigmas[0] / sigmas[-1]) ** share
        contexts = at_level(bound, sigma) if noisy_context else bound.contexts
        return denoising_composite(
            bound.head, contexts, rng, x, sigma=sigma, noisy_context=noisy_context
        )

    return objective


def likelihood(levels: GreyLevels | None) -> Objective:
    """Builds minus the log-likelihood in nats of a normalised head."""

    def objective(bound: Bound, rng: Rng, x: Array) -> Array:
        return -sum_except_batch(log_probs(bound, levels, x, bound.contexts(x)))

    return objective


def log_probs(bound: Bound, levels: GreyLevels | None, x: Array, c: Array) -> Array:
    """log p(x_d | c_d) of a normalised head: a density, or the probability of a grey level."""
    if levels is None:
        return bound.log_prob(x, c)
    return level_log_prob(bound.log_prob, bound.cdf, levels.index(x), c, bounds=levels.bounds)


def at_level(bound: Bound, sigma: Array) -> Callable[[Array], Array]:
    """Contexts of values with noise sigma (b,)."""
    return lambda x: bound.contexts(x, jnp.log(sigma)[:, None])


def causal_denoised(bound: Bound, x: Array, sigma: Array) -> Array:
    """x + sigma^2 s: E[x_d | noisy x_1 .. x_d] of each dimension, from noise sigma (b,).

    Source: Tweedie's formula for each conditional of the noisy density.
    """
    sigmas = jnp.broadcast_to(expand(sigma, x), x.shape)
    return x + sigmas**2 * bound.head(x, at_level(bound, sigma)(x), sigmas)
