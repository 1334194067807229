# SPDX-License-Identifier: Apache-2.0
"""Density by Gaussian kernels around the rows: nothing is trained, and far away it falls smoothly.

The kernel of column j has the standard deviation `bandwidth` times that of the column. A query
costs as much as a product with all rows.

Source: Parzen 1962; as a reward for imitation, the density baseline of the library
HumanCompatibleAI/imitation, whose default bandwidth is kept.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import require
from scorejax.density.rows import Rows, checked_rows, held_out_split
from scorejax.random import Rng, draw_rows, normal, row_keys, split

BANDWIDTH = 0.5
CENTRES_AT_ONCE = 4096
"""Rows whose distances to all queries are in memory together."""


class KernelDensity(NamedTuple):
    """Rows minus their mean, divided by the standard deviations of the kernel in each column."""

    centres: Float[Array, "n d"]
    mean: Float[Array, "d"]
    scale: Float[Array, "d"]


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    bandwidth: float | Sequence[float] = BANDWIDTH,
    held_out: float = 0.1,
) -> KernelDensity:
    """A kernel around each row; of several bandwidths, that of the largest held-out likelihood.

    Neighbours in time are near copies of each other, so that of rows of trajectories the held-out
    likelihood favours small bandwidths.
    Raises: ValueError for rows as `rows.checked_rows`, a column that does not vary, or an option
    out of range.
    """
    x = checked_rows(x)
    candidates = (bandwidth,) if isinstance(bandwidth, int | float) else tuple(bandwidth)
    for value in candidates:
        require({"bandwidth": value}, ("bandwidth",), lambda v: 0 < v < math.inf, "to be positive")
    if not candidates:
        raise ValueError("bandwidth needs a value, or several to choose from; got none")
    best = candidates[0]
    if len(candidates) > 1:
        rows, others = held_out_split(rng, x, held_out)
        score = jax.jit(lambda params: log_prob(params, others).mean())
        best = max(candidates, key=lambda h: float(score(_around(rows, h))))
    return _around(x, best)


def _around(x: Float[Array, "n d"], bandwidth: float) -> KernelDensity:
    rows = np.asarray(x, float)
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0)
    if len(constant):
        raise ValueError(
            f"a kernel density needs columns that vary; column {constant[0]} is "
            f"{rows[0, constant[0]]:g} in all {len(rows)} rows. Drop it"
        )
    mean, scale = rows.mean(axis=0), bandwidth * rows.std(axis=0)
    values = (rows - mean[None]) / scale[None], mean, scale
    return KernelDensity(*(jnp.asarray(value, float) for value in values))


def log_prob(params: KernelDensity, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row, in nats."""
    num, dim = params.centres.shape
    white = (x - params.mean[None]) / params.scale[None]
    size = min(num, CENTRES_AT_ONCE)
    padding = -num % size
    chunks = (
        jnp.pad(params.centres, ((0, padding), (0, 0))).reshape(-1, size, dim),
        jnp.pad(jnp.zeros(num), (0, padding), constant_values=-jnp.inf).reshape(-1, size),
    )

    def exponents(chunk: tuple[Array, Array]) -> Float[Array, "b"]:
        centres, log_weights = chunk
        # |x|^2 - 2 x.c + |c|^2 loses the digits of short distances only, whose share of an exponent
        # is small: 1e-5 nats at 23 columns and a bandwidth of 0.5, and it is a matrix product.
        inner = white @ centres.T - jnp.sum(centres**2, axis=1)[None] / 2
        return jax.nn.logsumexp(inner + log_weights[None].astype(inner.dtype), axis=1)

    with jax.default_matmul_precision("highest"):
        total = jax.nn.logsumexp(jax.lax.map(exponents, chunks), axis=0)
    log_volume = jnp.sum(jnp.log(params.scale)) + dim * math.log(2 * math.pi) / 2 + math.log(num)
    return total - jnp.sum(white**2, axis=1) / 2 - log_volume


def sample(rng: Rng, params: KernelDensity, num: int) -> Float[Array, "num d"]:
    """Draws rows; row i is a function of key i, by default of `rng` and i alone."""
    which_rngs, noise_rngs = split(rng if rng.ndim else row_keys(rng, num))
    draw = lambda key, shape: jax.random.randint(key, shape, 0, len(params.centres))
    which = draw_rows(draw, which_rngs, (num,))
    noise = normal(noise_rngs, (num, params.scale.size), params.scale.dtype)
    return params.mean[None] + params.scale[None] * (params.centres[which] + noise)
