# SPDX-License-Identifier: Apache-2.0
"""Log-likelihood of autoregressive models whose conditionals are normalised, such as mixtures."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.numerics import log_mass

Conditional = Callable[[Float[Array, "*n"], Float[Array, "*n h"]], Float[Array, "*n"]]
"""(u, c) -> log-density or distribution function at u in the context c."""

SMALL = 1e-5
"""Probability below which a difference of two distribution functions has lost its digits."""


def level_log_prob(
    log_prob: Conditional,
    cdf: Conditional,
    level: Int[Array, "b *d"],
    c: Float[Array, "b *d h"],
    *,
    bounds: Float[np.ndarray, "num"],
) -> Float[Array, "b *d"]:
    """Log-probability of a level: the density's integral between the bounds around it, in nats.

    `bounds` are equally spaced and part the levels 0, 1, ...; the first and the last level take
    what lies beyond. Where the probability is too small for a difference of single precision, it is
    the density at the middle times the width.
    Source: Salimans et al. 2017, arXiv:1701.05517, Eq. 2, for logistic mixtures.
    """
    spacing, last = bounds[1] - bounds[0], len(bounds)
    bounds = jnp.asarray(bounds, c.dtype)
    upper = jnp.where(level < last, cdf(bounds[jnp.minimum(level, last - 1)], c), 1.0)
    lower = jnp.where(level > 0, cdf(bounds[jnp.maximum(level - 1, 0)], c), 0.0)
    middle = bounds[0] + spacing * (level.astype(c.dtype) - 0.5)
    tiny = log_prob(middle, c) + jnp.log(spacing).astype(c.dtype)
    return log_mass(lower, upper, tiny, least=SMALL)
