# SPDX-License-Identifier: Apache-2.0
"""Score-matching objectives by name, each (network, rng, x, **options) -> (b,).

Directions have E[u u^T] = I / D. In expectation over directions an objective is a multiple,
`expected_multiple`, of SM = tr(Hessian of log p) + |score|^2 / 2 or of
DSM = |score(y) + (y - x) / sigma^2|^2 / 2. Divide by it to compare values of different objectives.
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.numerics import expand
from scorejax.objectives.denoising import energy_denoising
from scorejax.objectives.directions import real_data
from scorejax.objectives.finite_difference import (
    fd_denoising,
    fd_sliced,
    fd_sliced_vr,
    repeat_rows,
    score_fd_sliced,
)
from scorejax.objectives.sliced import (
    exact_score_matching,
    score_sliced_score_matching,
    score_sliced_score_matching_vr,
    sliced_score_matching,
    sliced_score_matching_vr,
)
from scorejax.random import Rng, normal, split
from scorejax.typing import EnergyFn, ScoreFn

Objective = Callable[..., Float[Array, "b"]]

ENERGY_OBJECTIVES: dict[str, Objective] = {
    "sm": exact_score_matching,
    "ssm": sliced_score_matching,
    "ssm_vr": sliced_score_matching_vr,
    "fd_ssm": fd_sliced,
    "dsm": energy_denoising,
    "fd_dsm": fd_denoising,
}
"""Objectives of an energy x (b, *d) -> (b,)."""

SCORE_OBJECTIVES: dict[str, Objective] = {
    "ssm": score_sliced_score_matching,
    "ssm_vr": score_sliced_score_matching_vr,
    "fd_ssm": score_fd_sliced,
    "fd_ssm_vr": fd_sliced_vr,
}
"""Objectives of a score x (b, *d) -> (b, *d)."""


def expected_multiple(name: str, dim: int) -> float:
    """Ratio of an objective's mean over directions to SM, or to DSM for "dsm" and "fd_dsm"."""
    multiples = {"sm": 1.0, "ssm": 1 / dim, "ssm_vr": 1.0, "fd_ssm": 1 / dim, "fd_ssm_vr": 1.0}
    return choose("objective", name, multiples | {"dsm": 1.0, "fd_dsm": 2 / dim})


def annealed(
    objective: Objective,
    network: ScoreFn | EnergyFn,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    sigma: Float[Array, "b"],
    power: float = 2.0,
) -> Float[Array, "b"]:
    """sigma^power times an objective (network, rng, x) at x + sigma noise, one level per example.

    network(x, sigma) is a score or an energy of the noisy data; the objective may join batches.
    Source: arXiv:2007.03317, Section 5 (NCSN), with power 2.
    """
    x = real_data(x)
    noise_rng, objective_rng = split(rng)
    noise = normal(noise_rng, x.shape, x.dtype)
    return annealed_at(objective, network, objective_rng, noise, x, sigma=sigma, power=power)


def annealed_at(
    objective: Objective,
    network: ScoreFn | EnergyFn,
    rng: Rng,
    noise: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    sigma: Float[Array, "b"],
    power: float = 2.0,
) -> Float[Array, "b"]:
    """sigma^power times an objective (network, rng, x) at x + sigma noise."""
    at_level = lambda y: network(y, repeat_rows(sigma, y.shape[0]))
    return sigma**power * objective(at_level, rng, x + expand(sigma, x) * noise)
