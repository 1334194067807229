# SPDX-License-Identifier: Apache-2.0
"""Composite score matching: univariate conditional scores, trained one dimension at a time.

A model is a score s_d(u | c_d) for each dimension d. The context c_d is computed from the earlier
dimensions alone, so that s_d stands for d/dx_d log p(x_d | x_<d). It is no part of the joint score,
which has the terms of later dimensions as well: no sampler of `ScoreFn` may have it.

A head (u, c) -> s works element by element; contexts x -> c (b, *d, h) are strictly causal.

Source: Meng et al. 2020, arXiv:2010.12810.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import expand, sum_except_batch
from scorejax.objectives.directions import real_data
from scorejax.random import Rng, normal
from scorejax.typing import ContextsFn, HeadFn, NoisyHeadFn


def composite_score_matching(
    head: HeadFn,
    contexts: ContextsFn,
    x: Float[Array, "b *d"],
    *,
    weight: Callable[[Float[Array, "b *d h"]], Float[Array, "b *d"]] | None = None,
) -> Float[Array, "b"]:
    """Sum over d of w_d (s_d^2 / 2 + ds_d / dx_d), with the context held in the derivative.

    In expectation this is half the sum of E w_d (s_d - d/dx_d log p(x_d | x_<d))^2, up to a
    constant of the data. One forward derivative gives all D terms, exactly. The head needs a second
    derivative in u. Values that repeat in the data take the loss to minus infinity: dequantise
    them.

    `weight` maps contexts to positive w, 1 by default, held constant in gradients. A function of
    the context alone does not move the minimiser. The variance of the conditional makes the terms
    independent of the unit of x_d; without it the narrowest conditionals have all the weight.
    """
    x = real_data(x)
    # Not jvp of x -> head(x, contexts(x)): that is the row sums of the Jacobian.
    c = contexts(x)
    s, slope = jax.jvp(lambda u: head(u, c), (x,), (jnp.ones_like(x),))
    terms = s**2 / 2 + slope
    return sum_except_batch(terms if weight is None else jax.lax.stop_gradient(weight(c)) * terms)


def denoising_composite(
    head: NoisyHeadFn,
    contexts: ContextsFn,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    sigma: Float[Array, "b"] | Float[Array, "b *d"],
    noisy_context: bool = False,
) -> Float[Array, "b"]:
    """Sum over d of (sigma s_d(x_d + sigma z_d | c_d, sigma) + z_d)^2 / 2, without a derivative.

    The minimiser depends on the context. From clean values it is the score of p(x_d | x_<d)
    convolved with N(0, sigma^2), for samples whose earlier dimensions are final, and sigma may
    differ by dimension. From noisy values it is that of the conditionals of the noisy joint
    density, for denoising.
    """
    x = real_data(x)
    sigma = jnp.broadcast_to(expand(sigma, x), x.shape) if sigma.ndim == 1 else sigma
    z = normal(rng, x.shape, x.dtype)
    noisy = x + sigma * z
    c = contexts(noisy if noisy_context else x)
    return sum_except_batch((sigma * head(noisy, c, sigma) + z) ** 2) / 2
