# SPDX-License-Identifier: Apache-2.0
"""Density up to a constant by an energy with spectral normalisation, fitted by its score.

log p = -E + constant. The energy is bounded, so that far from the rows log p is flat, and as a
reward it is bounded; its integral over the whole space is infinite, so that nothing can be drawn.

Source: sliced score matching with the full square of the score, Song et al. 2019, arXiv:1905.07088,
Eq. 8; as a reward for imitation, Kim et al. 2021, arXiv:2010.09808; spectral normalisation, Miyato
et al. 2018, arXiv:1802.05957. That its scales are learned is ours.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.density.fitting import Training, minimize
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.mlp import SpectralPerceptron
from scorejax.objectives.directions import rademacher
from scorejax.objectives.sliced import sliced_score_matching_vr
from scorejax.typing import PyTree

TRAINING = Training(num_epochs=200, learning_rate=3e-3, patience=30)
"""Sliced losses are noisier than likelihoods: more epochs, and more patience."""


class EnergyDensity(flax.struct.PyTreeNode):
    """A network, its variables, and its held-out loss: half the mean square of its score's error,
    up to a constant of the rows."""

    variables: PyTree
    held_out_loss: Array
    network: Any = flax.struct.field(pytree_node=False)


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    hidden: int = 256,
    num_hidden: int = 2,
    learned_scales: bool = True,
    training: Training = TRAINING,
) -> EnergyDensity:
    """Fits the energy to rows of about mean 0 and variance 1; options as in `SpectralPerceptron`.

    Raises: ValueError for rows as `rows.checked_rows`, or an option out of range.
    """
    x = checked_rows(x)
    network = SpectralPerceptron(hidden, num_hidden, learned_scales)
    init_rng, fit_rng = jax.random.split(rng)
    variables = jax.jit(network.init)(init_rng, x[:1])
    fitted = minimize(fit_rng, network, variables, _sliced, x, training)
    return EnergyDensity(fitted.variables, jnp.asarray(fitted.held_out_loss, x.dtype), network)


def log_prob(params: EnergyDensity, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row in nats, up to a constant that is the same for all rows."""
    with jax.default_matmul_precision("highest"):
        return -params.network.apply(params.variables, x)


def _sliced(
    network: SpectralPerceptron, variables: PyTree, rng: PRNGKeyArray, x: Float[Array, "b d"]
) -> Float[Array, "b"]:
    energy = functools.partial(network.apply, variables)
    return sliced_score_matching_vr(energy, rng, x, direction=rademacher)
