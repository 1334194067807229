# SPDX-License-Identifier: Apache-2.0
"""Denoising score matching: perturb the data and predict the noise that was added.

`denoising_score_matching` draws times and noise and returns one loss per example. Times, weighting
and reduction are functions that can be exchanged:

    weighting * reduction((score(x_t, t) - grad log p(x_t | x_0))^2).

`ddpm_loss` and `smld_loss` are the discrete-time losses that came before it.

Source: Song et al. 2021, arXiv:2011.13456, Eq. 7; Vincent 2011, doi:10.1162/NECO_a_00142.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scorejax.energies import Energy, score_of
from scorejax.numerics import expand, mean_except_batch, sum_except_batch
from scorejax.objectives.directions import Step, real_data
from scorejax.parameterize import ddpm_marginals
from scorejax.random import Rng, draw_rows, normal, split
from scorejax.schedules import geometric_sigmas
from scorejax.sdes import SDE, VESDE, VPSDE
from scorejax.typing import NetworkFn, ScoreFn, Shape

Weighting = Callable[[SDE, Float[Array, "b"]], Float[Array, "b"]]
Reduction = Callable[[Float[Array, "b *d"]], Float[Array, "b"]]
UnitDraw = Callable[[PRNGKeyArray, Shape], Array]


class Times(NamedTuple):
    """Times t (b,), and importance weights (b,) with which averages are over uniform t."""

    t: Float[Array, "b"]
    weight: Float[Array, "b"]


TimeSampler = Callable[[Rng, SDE, int], Times]


def variance_weighting(sde: SDE, t: Float[Array, "b"]) -> Float[Array, "b"]:
    """The weight std(t)^2, which makes the loss of equal size at all times."""
    return sde.marginal(t)[1] ** 2


def likelihood_weighting(sde: SDE, t: Float[Array, "b"]) -> Float[Array, "b"]:
    """The weight g(t)^2: with `half_sum`, the mean loss bounds -log p up to a constant.

    Source: Song, Durkan et al. 2021, arXiv:2101.09258, Corollary 1.
    """
    return sde.diffusion(t) ** 2


def half_sum(square: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Half the sum over the dimensions: the published reduction for VE."""
    return sum_except_batch(square) / 2


def uniform_times(rng: Rng, sde: SDE, num: int, *, draw: UnitDraw = jax.random.uniform) -> Times:
    """Times uniform on [t_min, t_max]."""
    t = sde.t_min + (sde.t_max - sde.t_min) * draw_rows(draw, rng, (num,))
    return Times(t, jnp.ones_like(t))


def likelihood_times(rng: Rng, sde: SDE, num: int, *, draw: UnitDraw = jax.random.uniform) -> Times:
    """Times of density proportional to g^2 / std^2: importance sampling for `likelihood_weighting`.

    The density is the derivative of log(std^2 / scale^2), so that these times are uniform in the
    logarithm of the noise-to-signal ratio.
    Raises: ValueError unless the SDE has t_min > 0.
    Source: arXiv:2101.09258 (importance sampling for the likelihood weighting).
    """
    if sde.t_min <= 0:
        raise ValueError(f"likelihood_times needs t_min > 0; got t_min={sde.t_min}.")
    first, last = log_noise_to_signal(sde, jnp.array([sde.t_min, sde.t_max]))
    log_ratio = first + (last - first) * draw_rows(draw, rng, (num,))
    t = jnp.clip(sde.time_of_sigma(jnp.exp(log_ratio / 2)), sde.t_min, sde.t_max)
    density = (sde.diffusion(t) / sde.marginal(t)[1]) ** 2 / (last - first)
    return Times(t, 1 / (density * (sde.t_max - sde.t_min)))


def low_discrepancy(rng: PRNGKeyArray, shape: Shape) -> Float[Array, "b"]:
    """Uniform numbers in [0, 1), evenly spaced from one random start: a `draw` of less variance.

    Each number is uniform, so that averages stay unbiased. It couples the batch and takes one key.
    Raises: ValueError if there is a key per example.
    Source: Kingma et al. 2021, arXiv:2107.00630 (their low-discrepancy sampler of times).
    """
    if len(shape) != 1:
        raise ValueError("low_discrepancy spaces a batch from one key; got a key per example.")
    (num,) = shape
    return (jax.random.uniform(rng) + jnp.arange(num) / num) % 1.0


def log_noise_to_signal(sde: SDE, t: Float[Array, "b"]) -> Float[Array, "b"]:
    """Logarithm of std^2 / scale^2, which rises with t at the rate g^2 / std^2."""
    scale, std = sde.marginal(t)
    return 2 * (jnp.log(std) - jnp.log(scale))


def perturb(
    sde: SDE, t: Float[Array, "b"], noise: Float[Array, "b *d"], x: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
    """The noisy data x_t = scale x + std noise."""
    scale, std = sde.marginal(t)
    return expand(scale, x) * x + expand(std, x) * noise


def denoising_score_matching(
    score_fn: ScoreFn,
    sde: SDE,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    time_sampler: TimeSampler = uniform_times,
    weighting: Weighting = variance_weighting,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Weighted squared error of the score at one random time and one noise draw per example.

    Its mean over the draws is that over uniform t in [t_min, t_max], for every time sampler.
    Source: arXiv:2011.13456, Eq. 7.
    """
    time_rng, noise_rng = split(rng)
    t, weight = time_sampler(time_rng, sde, x.shape[0])
    noise = normal(noise_rng, x.shape, x.dtype)
    loss = denoising_error(score_fn, sde, t, noise, x, weighting=weighting, reduction=reduction)
    return weight * loss


def denoising_error(
    score_fn: ScoreFn,
    sde: SDE,
    t: Float[Array, "b"],
    noise: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    weighting: Weighting = variance_weighting,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Weighted squared error of the score at x_t = scale x + std noise."""
    _, std = sde.marginal(t)
    # In units of the noise; the error of the score, score + noise / std, grows to 1e6 near t_min.
    residual = expand(std, x) * score_fn(perturb(sde, t, noise, x), t) + noise
    return weighting(sde, t) / std**2 * reduction(residual**2)


def ddpm_loss(
    network: NetworkFn,
    sde: VPSDE,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    num_scales: int,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Squared error of the predicted noise at a random step of the DDPM chain.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14.
    """
    step_rng, noise_rng = split(rng)
    steps = draw_rows(_scales(num_scales), step_rng, x.shape[:1])
    noise = normal(noise_rng, x.shape, x.dtype)
    return ddpm_error(network, sde, steps, noise, x, num_scales=num_scales, reduction=reduction)


def ddpm_error(
    network: NetworkFn,
    sde: VPSDE,
    steps: Int[Array, "b"],
    noise: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    num_scales: int,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Squared error of the predicted noise at steps (b,) of the DDPM chain; step 0 is the cleanest.

    The label is the step as a real number, as in `parameterize.discrete_noise_prediction`.
    """
    scale, std = (jnp.asarray(table, x.dtype)[steps] for table in ddpm_marginals(sde, num_scales))
    x_t = expand(scale, x) * x + expand(std, x) * noise
    return reduction((network(x_t, steps.astype(x.dtype)) - noise) ** 2)


def smld_loss(
    network: NetworkFn,
    sde: VESDE,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    num_scales: int,
    reduction: Reduction = half_sum,
) -> Float[Array, "b"]:
    """Squared error of sigma times the predicted score at a random level of the SMLD ladder.

    Source: Song and Ermon 2019, arXiv:1907.05600, Eqs. 5-6.
    """
    level_rng, noise_rng = split(rng)
    levels = draw_rows(_scales(num_scales), level_rng, x.shape[:1])
    noise = normal(noise_rng, x.shape, x.dtype)
    return smld_error(network, sde, levels, noise, x, num_scales=num_scales, reduction=reduction)


def smld_error(
    network: NetworkFn,
    sde: VESDE,
    levels: Int[Array, "b"],
    noise: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    num_scales: int,
    reduction: Reduction = half_sum,
) -> Float[Array, "b"]:
    """Squared error of sigma times the predicted score at levels (b,); level 0 is the noisiest."""
    ladder = geometric_sigmas(sde.sigma_min, sde.sigma_max, num_scales)
    sigma = expand(jnp.asarray(ladder, x.dtype)[levels], x)
    return reduction((sigma * network(x + sigma * noise, levels) + noise) ** 2)


def energy_denoising(
    energy: Energy, rng: Rng, x: Float[Array, "b *d"], *, sigma: Step
) -> Float[Array, "b"]:
    """DSM of an energy at y = x + sigma noise: |grad log p(y) + (y - x) / sigma^2|^2 / 2.

    sigma is one number, or one per example; the loss is not weighted.
    """
    x = real_data(x)
    level = expand(jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1]), x)
    displacement = level * normal(rng, x.shape, x.dtype)
    return half_sum((score_of(energy)(x + displacement) + displacement / level**2) ** 2)


def _scales(num_scales: int) -> Callable[[PRNGKeyArray, Shape], Array]:
    return functools.partial(jax.random.randint, minval=0, maxval=num_scales)
