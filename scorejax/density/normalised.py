# SPDX-License-Identifier: Apache-2.0
"""Densities by networks whose log-density is exact in one pass: flows, and mixtures in order."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.density.fitting import Losses, Training, minimize
from scorejax.random import Rng, row_keys
from scorejax.typing import PyTree

INITIAL_ROWS = 1024
"""Rows that initialise a network."""


class NormalisedDensity(flax.struct.PyTreeNode):
    """A network with its variables, and its mean held-out log-density in nats.

    Flows have methods `log_prob` (x (b, d)) -> (b,) and `sample` (rngs (b,), (b, d)) -> rows.
    """

    variables: PyTree
    held_out_log_prob: Array
    network: Any = flax.struct.field(pytree_node=False)
    dim: int = flax.struct.field(pytree_node=False)


def _negative_log_prob(
    network: nn.Module, variables: PyTree, rng: PRNGKeyArray, x: Float[Array, "b d"]
) -> Float[Array, "b"]:
    del rng
    return -network.apply(variables, x, method="log_prob")


def fit_network(
    rng: PRNGKeyArray,
    network: nn.Module,
    x: Float[Array, "n d"],
    training: Training,
    losses: Losses = _negative_log_prob,
) -> NormalisedDensity:
    """Fits a network by maximum likelihood, or by `losses`. Raises: as `fitting.minimize`."""
    rows_rng, init_rng, fit_rng = jax.random.split(rng, 3)
    # Drawn from all rows, which may be sorted: first values of the network may depend on them.
    few = jax.random.choice(rows_rng, x, (min(len(x), INITIAL_ROWS),), replace=False)
    variables = jax.jit(network.init)(init_rng, few)
    fitted = minimize(fit_rng, network, variables, losses, x, training)
    held_out = -jnp.asarray(fitted.held_out_loss, x.dtype)
    return NormalisedDensity(fitted.variables, held_out, network, x.shape[1])


def masked_units(hidden: int | None, dim: int) -> int:
    """Units of a masked layer for rows of `dim` coordinates; None: 256, or as many as dim if more.

    Raises: ValueError for fewer than dim - 1, which would leave some coordinates out of the
    conditionals of those that follow.
    """
    if hidden is None:
        return max(256, dim)
    if hidden < dim - 1:
        raise ValueError(
            f"hidden needs to be at least {dim - 1} for rows of {dim} coordinates, so that each "
            f"depends on all before it; got {hidden}. Leave it out, or reduce the columns"
        )
    return hidden


def log_prob(params: NormalisedDensity, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row, in nats."""
    with jax.default_matmul_precision("highest"):
        return params.network.apply(params.variables, x, method="log_prob")


def sample(rng: Rng, params: NormalisedDensity, num: int) -> Float[Array, "num d"]:
    """Draws rows; row i is a function of key i, by default of `rng` and i alone."""
    rngs = rng if rng.ndim else row_keys(rng, num)
    return params.network.apply(params.variables, rngs, (num, params.dim), method="sample")
