# SPDX-License-Identifier: Apache-2.0
"""Score matching with exact derivatives: dense, along random directions, and for score networks.

With l = -energy, s = grad l, and along a direction u with E[u u^T] = I / D

    d_k = the k-th derivative of t -> l(x + t u) at t = 0,

    SM = tr(Hessian of l) + |s|^2 / 2,   SSM = d_2 + d_1^2 / 2,   SSM-VR = D d_2 + |s|^2 / 2,

so that over directions E SSM = SM / D and E SSM-VR = SM. `finite_difference` estimates the same
numbers without derivatives. Functions that end in `_along` take the directions u (n, b, *d) and
average over n; the others draw them.
Sources: Hyvarinen 2005; Song et al. 2019, arXiv:1905.07088, Eqs. 7-8; arXiv:2007.03317, Section 2.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.energies import Energy, Score, checked_score, log_density, score_of
from scorejax.numerics import sum_except_batch
from scorejax.objectives.directions import (
    Direction,
    check_directions,
    draw_directions,
    real_data,
    sphere,
)
from scorejax.random import Rng


def exact_score_matching(energy: Energy, rng: Rng, x: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """SM from the dense Hessian of every example: memory b D^2, for small D. `rng` is not used."""
    x = real_data(x)
    return jax.vmap(lambda row: _exact(log_density(energy), row))(x)


def _exact(log_p: Energy, row: Float[Array, "*d"]) -> Float[Array, ""]:
    log_p_of_vector = lambda flat: log_p(flat.reshape(1, *row.shape))[0]
    gradient = jax.grad(log_p_of_vector)
    flat = row.reshape(-1)
    return jnp.trace(jax.jacfwd(gradient)(flat)) + jnp.sum(gradient(flat) ** 2) / 2


def sliced_score_matching(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """SSM, the mean over `num_directions` draws of d_2 + d_1^2 / 2; in expectation SM / D."""
    x = real_data(x)
    return sliced_along(energy, draw_directions(direction, rng, x, num_directions), x)


def sliced_along(
    energy: Energy, u: Float[Array, "n b *d"], x: Float[Array, "b *d"]
) -> Float[Array, "b"]:
    """SSM along the directions u, by forward mode over forward mode: no gradient in x is formed."""
    check_directions(u, x)
    log_p = log_density(energy)

    def along(u):
        slope = lambda x: jax.jvp(log_p, (x,), (u,))[1]
        first, second = jax.jvp(slope, (x,), (u,))
        return second + first**2 / 2

    return jnp.mean(jax.vmap(along)(u), axis=0)


def sliced_score_matching_vr(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """SSM-VR: the full square of the score, its divergence by directions; in expectation SM."""
    return score_sliced_score_matching_vr(
        score_of(energy), rng, x, direction=direction, num_directions=num_directions
    )


def score_sliced_score_matching(
    score: Score,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """SSM of a score network, u . (ds u) + (u . s)^2 / 2; in expectation SM / D."""
    x = real_data(x)
    return score_sliced_along(score, draw_directions(direction, rng, x, num_directions), x)


def score_sliced_along(
    score: Score, u: Float[Array, "n b *d"], x: Float[Array, "b *d"]
) -> Float[Array, "b"]:
    """SSM of a score network along the directions u."""
    check_directions(u, x)

    def along(u):
        s, ds_u = jax.jvp(checked_score(score), (x,), (u,))
        return sum_except_batch(u * ds_u) + sum_except_batch(u * s) ** 2 / 2

    return jnp.mean(jax.vmap(along)(u), axis=0)


def score_sliced_score_matching_vr(
    score: Score,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """SSM-VR of a score network, D u . (ds u) + |s|^2 / 2; in expectation SM."""
    x = real_data(x)
    return score_sliced_vr_along(score, draw_directions(direction, rng, x, num_directions), x)


def score_sliced_vr_along(
    score: Score, u: Float[Array, "n b *d"], x: Float[Array, "b *d"]
) -> Float[Array, "b"]:
    """SSM-VR of a score network along the directions u."""
    check_directions(u, x)
    dim = math.prod(x.shape[1:])

    def along(u):
        s, ds_u = jax.jvp(checked_score(score), (x,), (u,))
        return dim * sum_except_batch(u * ds_u) + sum_except_batch(s**2) / 2

    return jnp.mean(jax.vmap(along)(u), axis=0)
