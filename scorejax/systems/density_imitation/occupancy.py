# SPDX-License-Identifier: Apache-2.0
"""The density of demonstrated pairs of states and actions, with what makes it a reward.

Source: Kim et al. 2021, arXiv:2010.09808, Section 3; floor and constants are ours.
"""

import dataclasses
import functools
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.data.demonstrations import Demonstrations
from scorejax.density import get_density
from scorejax.systems.density_imitation.units import Units
from scorejax.typing import PyTree


class Occupancy(NamedTuple):
    """A density fitted to demonstrations, and the constants that make log q(s, a) a reward."""

    density: PyTree
    units: Units
    floor: Array
    """Nats below which log q is cut: the lowest hundredth of the demonstrations, minus a margin."""
    low: Array
    """The lowest hundredth of log q on the demonstrations."""
    centre: Array
    """Its mean on the demonstrations."""
    spread: Array
    """Its standard deviation there."""


class FitOptions(NamedTuple):
    """How a network is fitted to pairs; densities without a network read none of it."""

    noise: float
    """Added to the pairs while it is fitted, in standard deviations: without it one trajectory has
    no bounded likelihood."""
    num_epochs: int
    batch_size: int


def fit_occupancy(
    name: str, demonstrations: Demonstrations, fit: FitOptions, *, margin: float, seed: int
) -> Occupancy:
    """Fits the density `name` of `density.DENSITIES` to pairs of states and actions.

    Raises: ValueError as the `fit` of the density.
    """
    rows, (mean, std) = demonstrations.pairs(), demonstrations.moments()
    constant = np.flatnonzero(np.ptp(rows, axis=0) == 0)
    if len(constant):
        kind, column = ("observations", constant[0])
        if column >= demonstrations.observation_dim:
            kind, column = "actions", column - demonstrations.observation_dim
        raise ValueError(
            f"a density needs columns that vary; column {column} of {kind} is "
            f"{rows[0, constant[0]]:g} in all {len(rows)} pairs of {demonstrations.name}. Take "
            "more demonstrations, or leave it out"
        )
    module, options = get_density(name), {}
    parameters = inspect.signature(module.fit).parameters
    if "training" in parameters:
        changes = {"patience": max(fit.num_epochs // 6, 1), **fit._asdict()}
        options["training"] = dataclasses.replace(parameters["training"].default, **changes)
    if "bandwidth" in parameters:
        options["bandwidth"] = fit.noise  # Kernels are the law of the rows with noise.
    fitted = module.fit(jax.random.key(seed), (rows - mean[None]) / std[None], **options)
    number = lambda value: jnp.asarray(value, jnp.float32)
    raw = Occupancy(fitted, Units.of(demonstrations), *map(number, (-np.inf, 0.0, 0.0, 1.0)))
    log_q = np.asarray(jax.jit(functools.partial(log_occupancy, name))(raw, number(rows)))
    low = np.quantile(log_q, 0.01)
    constants = {"low": low, "floor": low - margin, "centre": log_q.mean(), "spread": log_q.std()}
    return raw._replace(**{name: number(value) for name, value in constants.items()})


def log_occupancy(name: str, occupancy: Occupancy, rows: Float[Array, "b d"]) -> Float[Array, "b"]:
    """log q of pairs of states and actions, in nats of their units."""
    log_q = get_density(name).log_prob(occupancy.density, occupancy.units.pairs(rows))
    return log_q - jnp.sum(jnp.log(occupancy.units.std))


def slowed_below(log_q: Float[Array, "b"], floor: Array) -> Float[Array, "b"]:
    """log_q, and below the floor floor - log(1 + floor - log_q): slower, but without a flat end.

    It rises everywhere and its slope, 1 at the floor, is continuous. The tails of most densities
    fall as the square of the distance, and so this as its logarithm.
    """
    depth = jnp.maximum(floor - log_q, 0.0)
    return jnp.maximum(log_q, floor) - jnp.log1p(depth)
