# SPDX-License-Identifier: Apache-2.0
"""DPM-Solver++: samplers of second order for tens of network calls, one call a step.

The linear part of the flow is solved exactly in the half-log-SNR ln(scale / std). The denoised
point, the part that is not linear, is extrapolated from its values at this step and the last.

Source: Lu et al. 2022, arXiv:2211.01095.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.parameterize import score_to_denoiser
from scorejax.preconditioning import noise_level_range
from scorejax.random import Rng, normal, split
from scorejax.samplers.predictors import X
from scorejax.schedules import geometric_sigmas
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape

Grid: TypeAlias = Callable[[float, float, int], Float[np.ndarray, "n"]]
"""(sigma_min, sigma_max, n) -> n noise levels, from sigma_max down to sigma_min."""

LOWER_ORDER_BELOW = 15
"""With fewer steps the last one is of first order, as the authors advise."""


def dpm_solver_pp(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 20,
    t_min: float | None = None,
    grid: Grid = geometric_sigmas,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples by DPM-Solver++(2M), a deterministic method of second order.

    Makes num_steps evaluations from t_max to t_min, sde.sampling_t_min by default, and one more
    with `denoise`, which removes the noise that is left. The grid of noise levels is even in their
    logarithm by default. Starts from x_init, or by default from the prior; with keys (b,) each row
    draws from its own key.

    Source: arXiv:2211.01095, Algorithm 2.
    """
    prior_rng, _ = split(rng)
    x = sde.sample_prior(prior_rng, shape) if x_init is None else x_init
    t, decay, scale, std = _half_log_snr_steps(sde, num_steps, t_min, grid, x.dtype)
    keep = std[1:] / std[:-1]
    pull = -scale[1:] * jnp.expm1(-decay)
    return _multistep(score_fn, x, sde, t, decay, (keep, pull, None), denoise)


def sde_dpm_solver_pp(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 40,
    t_min: float | None = None,
    grid: Grid = geometric_sigmas,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples by SDE-DPM-Solver++(2M): `dpm_solver_pp` with fresh noise at each step.

    Source: arXiv:2211.01095, Section 5 (the reverse-time SDE with noise for each step).
    """
    prior_rng, noise_rng = split(rng)
    x = sde.sample_prior(prior_rng, shape) if x_init is None else x_init
    t, decay, scale, std = _half_log_snr_steps(sde, num_steps, t_min, grid, x.dtype)
    lost = -jnp.expm1(-2 * decay)
    keep = std[1:] / std[:-1] * jnp.exp(-decay)
    noise = (std[1:] * jnp.sqrt(lost), split(noise_rng, num_steps))
    return _multistep(score_fn, x, sde, t, decay, (keep, scale[1:] * lost, noise), denoise)


def _half_log_snr_steps(
    sde: SDE, num_steps: int, t_min: float | None, grid: Grid, dtype: object
) -> tuple[Array, Array, Array, Array]:
    """Times from t_max down, growth of ln(scale / std) at each step, scale and std at the times."""
    low, high = noise_level_range(sde, sde.sampling_t_min if t_min is None else t_min)
    sigmas = jnp.asarray(grid(low, high, num_steps + 1), dtype)
    t = jnp.minimum(sde.time_of_sigma(sigmas), sde.t_max)
    return t, -jnp.diff(jnp.log(sigmas)), *sde.marginal(t)


def _multistep(score_fn, x, sde, t, decay, coefficients, denoise) -> Sampled:
    """Steps x <- keep x + pull E + noise z, where E extrapolates the last two denoised points."""
    keep, pull, noise = coefficients
    num_steps = len(decay)
    lean = jnp.concatenate([jnp.zeros_like(decay[:1]), decay[1:] / (2 * decay[:-1])])
    if num_steps < LOWER_ORDER_BELOW:
        lean = lean.at[-1].set(0.0)

    def denoised(x: X, t: Float[Array, ""]) -> X:
        times = jnp.full(x.shape[:1], t, x.dtype)
        return score_to_denoiser(sde, times, x, score_fn(x, times))

    def body(carry: tuple[X, X], inputs: tuple) -> tuple[tuple[X, X], None]:
        (x, before), (t, keep, pull, lean, noise) = carry, inputs
        now = denoised(x, t)
        x = keep * x + pull * (now + lean * (now - before))
        if noise is not None:
            x = x + noise[0] * normal(noise[1], x.shape, x.dtype)
        return (x, now), None

    (x, _), _ = jax.lax.scan(body, (x, jnp.zeros_like(x)), (t[:-1], keep, pull, lean, noise))
    return Sampled(denoised(x, t[-1]) if denoise else x, num_steps + denoise)
