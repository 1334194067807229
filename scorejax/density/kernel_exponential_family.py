# SPDX-License-Identifier: Apache-2.0
"""Exponential families whose sufficient statistics are kernels: weights in closed form.

log p(x) = sum_m alpha_m k(x, z_m) + log q_0(x) - log Z. Every score-matching loss depends on log p
through a few linear functionals, derivatives or differences: "first" enters squared, "second"
linearly. The loss is therefore quadratic in the weights alpha, and the best weights solve a linear
system. The kernel is learned through that solution, on data held out from it.

Source: Wenliang et al. 2019, arXiv:1811.08357, Proposition 1; by sliced losses, Song et al. 2019,
arXiv:1905.07088, Section 5.1; by finite differences, Pang et al. 2020, arXiv:2007.03317.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.objectives.directions import check_step

Terms = Callable[[Float[Array, "b d"]], Float[Array, "b k"]]
"""x -> the terms of log p: kernels at the inducing points and, last, log q_0."""


class Functionals(NamedTuple):
    """Linear functionals of each term, of which loss = |first . w|^2 / 2 + second . w + constant.

    w (k,) are the weights of the terms; that of the last, log q_0, is one.
    """

    first: Float[Array, "b f k"]
    second: Float[Array, "b k"]
    constant: Float[Array, "b"]


def exact(terms: Terms, x: Float[Array, "b d"]) -> Functionals:
    """Functionals of score matching, tr H + |grad|^2 / 2. Source: Hyvarinen 2005."""

    def along(u: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda y: jax.jvp(terms, (y,), (u,))[1], (x,), (u,))

    first, second = jax.vmap(along, out_axes=(1, 1))(_axes(x))
    return Functionals(first, second.sum(axis=1), jnp.zeros_like(x[:, 0]))


def _axes(x: Float[Array, "b d"]) -> Float[Array, "d b d"]:
    """Unit vectors for all rows, so that derivatives of whole batches are matrix products."""
    axes = jnp.eye(x.shape[1], dtype=x.dtype)
    return jnp.broadcast_to(axes[:, None], (len(axes), *x.shape))


def sliced(terms: Terms, x: Float[Array, "b d"], u: Float[Array, "b d"]) -> Functionals:
    """Functionals of sliced score matching along unit vectors u, u^T H u + (u . grad)^2 / 2."""
    derivative = lambda y: jax.jvp(terms, (y,), (u,))[1]
    first, second = jax.jvp(derivative, (x,), (u,))
    return Functionals(first[:, None], second, jnp.zeros_like(x[:, 0]))


def fd_sliced(
    terms: Terms, x: Float[Array, "b d"], u: Float[Array, "b d"], *, eps: float
) -> Functionals:
    """Functionals of FD-SSM: those of `sliced` by differences of the terms at x and x +- eps u.

    Raises: ValueError if a step or a direction has no length.
    """
    check_step(eps, u, x)
    centre, ahead, behind = jnp.split(terms(jnp.concatenate([x, x + eps * u, x - eps * u])), 3)
    # The difference of nearby numbers is exact; the sum of two values would be rounded.
    rise, fall = ahead - centre, behind - centre
    first, second = (rise - fall) / (2 * eps), (rise + fall) / eps**2
    return Functionals(first[:, None], second, jnp.zeros_like(x[:, 0]))


def denoising(
    terms: Terms, x: Float[Array, "b d"], noise: Float[Array, "b d"], *, sigma: float
) -> Functionals:
    """Functionals of denoising score matching at x + sigma noise, |grad + noise / sigma|^2 / 2."""
    along = lambda u: jax.jvp(terms, (x + sigma * noise,), (u,))[1]
    first = jax.vmap(along, out_axes=1)(_axes(x))
    second = jnp.einsum("bd,bdk->bk", noise / sigma, first)
    return Functionals(first, second, jnp.sum(noise**2, axis=1) / (2 * sigma**2))


def fd_denoising(
    terms: Terms,
    x: Float[Array, "b d"],
    noise: Float[Array, "b d"],
    u: Float[Array, "b d"],
    *,
    sigma: float,
    eps: float,
) -> Functionals:
    """Functionals of FD-DSM, (difference along u + u . noise / sigma)^2.

    The loss is on average 2 / d times that of `denoising`.
    Raises: ValueError if a step or a direction has no length.
    """
    check_step(eps, u, x)
    noisy = x + sigma * noise
    ahead, behind = jnp.split(terms(jnp.concatenate([noisy + eps * u, noisy - eps * u])), 2)
    first = (ahead - behind) / (2 * eps)
    pull = jnp.sum(u * noise, axis=1) / sigma
    return Functionals(math.sqrt(2) * first[:, None], 2 * pull[:, None] * first, pull**2)


def scaled(functionals: Functionals, factor: float) -> Functionals:
    """The functionals of `factor` times the loss."""
    first, second, constant = functionals
    return Functionals(math.sqrt(factor) * first, factor * second, factor * constant)


def inner_weights(functionals: Functionals, ridge: float | Float[Array, ""]) -> Float[Array, "m"]:
    """The weights of the kernels that minimise the mean loss + ridge |alpha|^2 / 2.

    Source: arXiv:1811.08357, Proposition 1.
    """
    kernels, base = functionals.first[..., :-1], functionals.first[..., -1]
    num = len(kernels)
    gram = jnp.einsum("bfi,bfj->ij", kernels, kernels) / num
    linear = jnp.einsum("bfi,bf->i", kernels, base) / num
    linear = linear + functionals.second[:, :-1].mean(axis=0)
    matrix = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    return -jax.scipy.linalg.solve(matrix, linear, assume_a="pos")


def loss(functionals: Functionals, alpha: Float[Array, "m"]) -> Float[Array, "b"]:
    """The loss with these functionals, at the weights alpha of the kernels."""
    first, second, constant = functionals
    w = jnp.concatenate([alpha, jnp.ones_like(alpha[:1])])
    return jnp.sum((first @ w) ** 2, axis=1) / 2 + second @ w + constant


def log_density(terms: Terms, alpha: Float[Array, "m"], x: Float[Array, "b d"]) -> Array:
    """Log-density (b,) in nats, up to log Z."""
    values = terms(x)
    return values[:, :-1] @ alpha + values[:, -1]
