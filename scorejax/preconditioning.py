# SPDX-License-Identifier: Apache-2.0
"""Networks as denoisers D(x; sigma) of x = x_0 + sigma noise, and denoisers as scores.

A preconditioner scales the input, the label and the output of a network F, so that F sees and
predicts numbers of unit size:

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise).

For every SDE x_t / scale is x_0 plus noise of level sigma = std / scale.
Source: Karras et al. 2022, arXiv:2206.00364, Section 5 and Table 1.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.numerics import expand
from scorejax.parameterize import TIME_LABEL_SCALE, denoiser_to_score, score_to_denoiser
from scorejax.sdes import SDE, VPSDE
from scorejax.typing import NetworkFn, ScoreFn

DenoiserFn: TypeAlias = Callable[[Float[Array, "b *d"], Float[Array, "b"]], Float[Array, "b *d"]]
"""(x, sigma) -> the mean of x_0 given x = x_0 + sigma noise."""


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise of a preconditioner at noise levels (b,)."""

    skip: Float[Array, "b"]
    out: Float[Array, "b"]
    into: Float[Array, "b"]
    noise_label: Float[Array, "b"]


Preconditioner: TypeAlias = Callable[[Float[Array, "b"]], Coefficients]


def edm_coefficients(sigma: Float[Array, "b"], *, sigma_data: float = 0.5) -> Coefficients:
    """Coefficients that keep input and target at unit variance and amplify errors least.

    sigma_data is the standard deviation of the data. Source: arXiv:2206.00364, Table 1 and
    Appendix B.6.
    """
    root = jnp.sqrt(sigma**2 + sigma_data**2)
    return Coefficients(
        sigma_data**2 / root**2, sigma * sigma_data / root, 1 / root, jnp.log(sigma) / 4
    )


def vp_coefficients(sigma: Float[Array, "b"], *, sde: VPSDE | None = None) -> Coefficients:
    """Coefficients with which F predicts the noise from the label 999 t, as VP networks do."""
    label = TIME_LABEL_SCALE * (sde or VPSDE()).time_of_sigma(sigma)
    return Coefficients(jnp.ones_like(sigma), -sigma, 1 / jnp.sqrt(sigma**2 + 1), label)


def ve_coefficients(sigma: Float[Array, "b"]) -> Coefficients:
    """Coefficients with which F predicts minus the noise from the label ln(sigma / 2).

    The half is there because VE networks see images in [0, 1], and EDM's lie in [-1, 1].
    """
    return Coefficients(jnp.ones_like(sigma), sigma, jnp.ones_like(sigma), jnp.log(sigma / 2))


def preconditioned(
    network: NetworkFn, coefficients: Preconditioner = edm_coefficients
) -> DenoiserFn:
    """The denoiser c_skip x + c_out F(c_in x; c_noise) of a network F."""

    def denoiser(x: Float[Array, "b *d"], sigma: Float[Array, "b"]) -> Float[Array, "b *d"]:
        c = coefficients(sigma)
        prediction = network(expand(c.into, x) * x, c.noise_label)
        return expand(c.skip, x) * x + expand(c.out, x) * prediction

    return denoiser


def noise_level(sde: SDE, t: Float[Array, "b"]) -> Float[Array, "b"]:
    """Noise level sigma = std / scale at time t, in units of the data."""
    scale, std = sde.marginal(t)
    return std / scale


def noise_level_range(sde: SDE, t_min: float) -> tuple[float, float]:
    """Noise levels at t_min and t_max as Python numbers, also inside jit."""
    with jax.ensure_compile_time_eval():
        low, high = noise_level(sde, jnp.asarray([t_min, sde.t_max]))
        return float(low), float(high)


def denoiser_to_score_fn(sde: SDE, denoiser: DenoiserFn) -> ScoreFn:
    """The score of an SDE's p_t from a denoiser; with it any sampler draws from an EDM network."""

    def score_fn(x: Float[Array, "b *d"], t: Float[Array, "b"]) -> Float[Array, "b *d"]:
        scale, _ = sde.marginal(t)
        return denoiser_to_score(sde, t, x, denoiser(x / expand(scale, x), noise_level(sde, t)))

    return score_fn


def score_fn_to_denoiser(sde: SDE, score_fn: ScoreFn) -> DenoiserFn:
    """The denoiser from the score of an SDE's p_t: the inverse of `denoiser_to_score_fn`.

    Times are clipped to t_max, beyond which rounding could lead.
    """

    def denoiser(x: Float[Array, "b *d"], sigma: Float[Array, "b"]) -> Float[Array, "b *d"]:
        t = jnp.minimum(sde.time_of_sigma(sigma), sde.t_max)
        x_t = expand(sde.marginal(t)[0], x) * x
        return score_to_denoiser(sde, t, x_t, score_fn(x_t, t))

    return denoiser
