# SPDX-License-Identifier: Apache-2.0
"""The density of demonstrated pairs of states and actions, with what makes it a reward.

Source: Kim et al. 2021, arXiv:2010.09808, Section 3; floor and constants are ours.
"""

import dataclasses
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
    """A density fitted to demonstrations, and the constants that make log q(s, a) a reward.

    The constants are of demonstrations that the density judged without having seen them: a kernel
    density, and any that memorises, is far larger on the rows that it was fitted to.
    """

    density: PyTree
    units: Units
    floor: Array
    """Nats below which log q is slowed: the lowest hundredth held out, minus a margin."""
    low: Array
    """The lowest hundredth of log q, held out."""
    centre: Array
    """Its mean there."""

    @property
    def unit(self) -> float:
        """Nats from the mean to the floor, at least 1: most of the reward's range."""
        return max(float(self.centre - self.floor), 1.0)


class FitOptions(NamedTuple):
    """How densities are fitted to pairs; those without a network read the noise at most."""

    noise: float
    """Deviation of the noise that is added to the pairs while a network is fitted, and bandwidth of
    kernels, in standard deviations: without it one trajectory has no bounded likelihood."""
    num_epochs: int
    batch_size: int


def fit_occupancy(
    name: str, demonstrations: Demonstrations, fit: FitOptions, *, margin: float, seed: int
) -> Occupancy:
    """Fits the density `name` of `density.DENSITIES` to pairs of states and actions.

    It is fitted to all pairs. Another, fitted without `Demonstrations.held_out_rows`, judges those
    for the constants.
    Raises: ValueError as the `fit` of the density, or as `held_out_rows`.
    """
    rows, (mean, std) = demonstrations.pairs(), demonstrations.moments()
    kept, held = demonstrations.held_out_rows()
    _require_varying(rows[kept], demonstrations)
    fitted = lambda rows: _fit(name, (rows - mean[None]) / std[None], fit, seed)
    number = lambda value: jnp.asarray(value, jnp.float32)
    units, judge = Units.of(demonstrations), fitted(rows[kept])
    log_q = np.asarray(jax.jit(_log_prob, static_argnums=0)(name, judge, units, number(rows[held])))
    low = np.quantile(log_q, 0.01)
    constants = {"low": low, "floor": low - margin, "centre": log_q.mean()}
    return Occupancy(fitted(rows), units, **{k: number(value) for k, value in constants.items()})


def _fit(name: str, white: np.ndarray, fit: FitOptions, seed: int) -> PyTree:
    """The parameters of a density of rows in standard deviations."""
    module, options = get_density(name), {}
    parameters = inspect.signature(module.fit).parameters
    if "training" in parameters:
        changes = {"patience": max(fit.num_epochs // 6, 1), **fit._asdict()}
        options["training"] = dataclasses.replace(parameters["training"].default, **changes)
    if "bandwidth" in parameters:
        options["bandwidth"] = fit.noise  # Kernels are the law of the rows with noise.
    return module.fit(jax.random.key(seed), white, **options)


def _require_varying(rows: np.ndarray, demonstrations: Demonstrations) -> None:
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


def log_occupancy(name: str, occupancy: Occupancy, rows: Float[Array, "b d"]) -> Float[Array, "b"]:
    """log q of pairs of states and actions, in nats of their units."""
    return _log_prob(name, occupancy.density, occupancy.units, rows)


def _log_prob(name: str, density: PyTree, units: Units, rows: Array) -> Array:
    return get_density(name).log_prob(density, units.pairs(rows)) - jnp.sum(jnp.log(units.std))


def slowed_below(log_q: Float[Array, "b"], floor: Array) -> Float[Array, "b"]:
    """log_q, and below the floor floor + 1 - sqrt(1 + 2 (floor - log_q)): slower, never flat.

    It rises everywhere and its slope, 1 at the floor, is continuous. Most densities fall as the
    square of the distance from the rows, and this as the distance, by the idea of Huber's loss.
    """
    depth = jnp.maximum(floor - log_q, 0.0)
    return jnp.maximum(log_q, floor) + 1 - jnp.sqrt(1 + 2 * depth)
