# SPDX-License-Identifier: Apache-2.0
"""Energies and scores of one density: functions of x alone, checked where they are called."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.typing import EnergyFn

Energy = Callable[[Float[Array, "b *d"]], Float[Array, "b"]]
"""x (b, *d) -> (b,): -log p up to a constant, in nats; rows must be independent."""
Score = Callable[[Float[Array, "b *d"]], Float[Array, "b *d"]]
"""x (b, *d) -> (b, *d): grad log p."""


def log_density(energy: Energy) -> Energy:
    """-energy; a call raises a ValueError unless its shape is (b,), in float32 or better."""

    def negative(x: Float[Array, "b *d"]) -> Float[Array, "b"]:
        value = energy(x)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"energy needs one number per example, shape {x.shape[:1]}; got shape "
                f"{value.shape}. Sum over the other axes."
            )
        return -_precise(value, "energy")

    return negative


def score_of(energy: Energy) -> Score:
    """The score -grad energy."""
    return jax.grad(lambda x: jnp.sum(log_density(energy)(x)))


def checked_score(score: Score) -> Score:
    """The score; a call raises a ValueError unless its shape is that of x, in float32 or better."""

    def checked(x: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
        value = score(x)
        if value.shape != x.shape:
            raise ValueError(f"score needs the shape of x, {x.shape}; got {value.shape}.")
        return _precise(value, "score")

    return checked


def _precise(value: Array, name: str) -> Array:
    if jnp.finfo(value.dtype).bits < 32:
        raise ValueError(
            f"{name} needs float32 or better, or its differences are rounding; got {value.dtype}. "
            "Accumulate in float32."
        )
    return value


def product_of_experts(*energy_fns: EnergyFn) -> EnergyFn:
    """The energy (x, t) -> (b,) of the normalised product of densities: the sum of their energies.

    At a noise level it is the product of the noisy densities, which is not the noisy product, so
    chains need many steps at the levels below.
    Source: Hinton 2002, Neural Computation 14(8).
    Raises: ValueError without an energy.
    """
    if not energy_fns:
        raise ValueError("product_of_experts needs at least one energy; got none")
    return lambda x, t: sum(energy_fn(x, t) for energy_fn in energy_fns)
