# SPDX-License-Identifier: Apache-2.0
"""From the output of a network to the score: the only place with labels, signs and scales.

A network may predict the score, the noise or the denoised point of x_t = scale x_0 + std noise. In
the mean over x_0 given x_t these three are affine functions of each other:

    noise = -std score,   denoiser = (x_t + std^2 score) / scale   (Tweedie's formula).

The conversions share one signature, (sde, t, x_t, value) -> value. The functions below them turn a
network, called as (x, label), into a ScoreFn in the convention that it was trained with.

Source: Song et al. 2021, arXiv:2011.13456, Appendices C and H; labels and scales as in the code
published with it.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.numerics import expand
from scorejax.schedules import RecoveryLevels, alpha_products, linear_betas
from scorejax.sdes import SDE, VESDE, VPSDE, table_index
from scorejax.typing import EnergyFn, NetworkFn, ScoreFn

TIME_LABEL_SCALE = 999.0
"""Continuous networks see t as the label 999 t, however many steps a sampler takes."""


def noise_to_score(
    sde: SDE, t: Float[Array, "b"], x: Float[Array, "b *d"], noise: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
    """Score at x_t from the mean of the noise given x_t."""
    _, std = sde.marginal(t)
    return -noise / expand(std, x)


def score_to_denoiser(
    sde: SDE, t: Float[Array, "b"], x: Float[Array, "b *d"], score: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
    """Mean of x_0 given x_t."""
    scale, std = sde.marginal(t)
    return (x + expand(std**2, x) * score) / expand(scale, x)


def denoiser_to_score(
    sde: SDE, t: Float[Array, "b"], x: Float[Array, "b *d"], denoiser: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
    """Score at x_t from the mean of x_0 given x_t; loses digits where std is tiny."""
    scale, std = sde.marginal(t)
    return (expand(scale, x) * denoiser - x) / expand(std**2, x)


def noise_prediction(sde: SDE, network: NetworkFn) -> ScoreFn:
    """Score of a network that predicts the noise from the label 999 t: VP and sub-VP."""
    return lambda x, t: noise_to_score(sde, t, x, network(x, TIME_LABEL_SCALE * t))


def discrete_noise_prediction(sde: VPSDE, network: NetworkFn, num_scales: int) -> ScoreFn:
    """Score along the chain, of a network trained on the DDPM chain of num_scales steps: VP.

    The label is the real number t (num_scales - 1); the std is that of the chain at its whole part.
    This is the published convention, for samplers that walk the chain: its step at t has more noise
    than the SDE at t (near t = 1 / 999 the std of the SDE is 0.71 of it). Solvers of the SDE or of
    its flow need `noise_prediction_between_levels`.
    """
    std_table = ddpm_marginals(sde, num_scales)[1]

    def score_fn(x: Array, t: Array) -> Array:
        std = jnp.asarray(std_table, x.dtype)[table_index(t, num_scales)]
        return -network(x, t * (num_scales - 1)) / expand(std, x)

    return score_fn


def noise_prediction_between_levels(sde: VPSDE, network: NetworkFn, num_scales: int) -> ScoreFn:
    """Score along the SDE, of a network trained on the DDPM chain of num_scales steps: VP.

    The label is the real number of the step whose std is that of the SDE at t; between two steps
    the logarithm of the squared scale is linear in the label. Below the std of the first step, for
    which no network was trained, the score is that of the first step.
    Source: the code published with arXiv:2206.00927 interpolates the scale in the same way.
    """
    scales, stds = ddpm_marginals(sde, num_scales)
    decays = -2 * np.log(scales)

    def score_fn(x: Array, t: Array) -> Array:
        scale, std = sde.marginal(t)
        # -2 ln(scale), without cancellation where the scale is nearly 1.
        decay = jnp.log1p((std / scale) ** 2)
        label = jnp.interp(
            decay, jnp.asarray(decays, x.dtype), jnp.arange(num_scales, dtype=x.dtype)
        )
        return -network(x, label) / expand(jnp.maximum(std, float(stds[0])), x)

    return score_fn


def ddpm_marginals(sde: VPSDE, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and std (num_scales,), in double precision, of x_i given x_0 in the DDPM chain.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4.
    """
    alpha_bar = alpha_products(linear_betas(sde.beta_min, sde.beta_max, num_scales))
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def sigma_conditioned(sde: VESDE, network: NetworkFn) -> ScoreFn:
    """Score of a network that predicts the score from the label sigma(t): VE."""
    return lambda x, t: network(x, sde.sigma(t))


def discrete_sigma_conditioned(sde: VESDE, network: NetworkFn, num_scales: int) -> ScoreFn:
    """Score along the ladder, of a network trained on the SMLD ladder of num_scales levels: VE.

    The label is the integer index of the nearest level; index 0 is the largest sigma. This is the
    published convention, for samplers that walk the ladder. Solvers of the SDE or of its flow need
    `sigma_conditioned_between_levels`.
    """

    def score_fn(x: Array, t: Array) -> Array:
        position = (1 - t) * (num_scales - 1)
        return network(x, jnp.round(position).astype(jnp.int32))

    return score_fn


def sigma_conditioned_between_levels(sde: VESDE, network: NetworkFn, num_scales: int) -> ScoreFn:
    """Score along the SDE, of a network trained on the SMLD ladder of num_scales levels: VE.

    Between two levels the network's noise, minus sigma times the score, is that of the nearest
    level; so the score is that level's times its sigma / sigma(t).
    """
    at_level = discrete_sigma_conditioned(sde, network, num_scales)

    def score_fn(x: Array, t: Array) -> Array:
        nearest = jnp.round(t * (num_scales - 1)) / (num_scales - 1)
        return at_level(x, nearest) * expand(sde.sigma(nearest) / sde.sigma(t), x)

    return score_fn


def divided_by_sigma(network: NetworkFn) -> NetworkFn:
    """Divides the output of a network by its label sigma."""
    return lambda x, sigma: network(x, sigma) / expand(sigma, x)


def divided_by_level_sigma(network: NetworkFn, sigmas: Float[Array, "levels"]) -> NetworkFn:
    """Divides the output of a network by sigmas[label], for integer labels."""
    return lambda x, label: network(x, label) / expand(sigmas[label], x)


def recovery_energy(
    levels: RecoveryLevels, network: Callable[[Array, Array], Float[Array, "b"]]
) -> EnergyFn:
    """Energy -F / s_t^2 in nats, of a network (y, t) -> F (b,) of diffusion recovery likelihood.

    With this scale a Langevin step of squared size s_t^2 moves y by grad F / 2, at every level. On
    levels with the energy unit "nats" the energy is -F.
    Source: arXiv:2012.08125, Section 3, as in the published code.
    """

    def energy_fn(y: Array, t: Array) -> Array:
        value = network(y, t)
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        return -value / jnp.asarray(levels.energy_units, value.dtype)[t]

    return energy_fn
