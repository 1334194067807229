# SPDX-License-Identifier: Apache-2.0
"""The probability-flow ODE: one smooth, invertible map between data and latents.

`encode` follows it from data to noise and `decode` back; drawing the latents from the prior first
makes it a sampler. The solver is adaptive for each example by itself, so that a row's answer does
not depend on its batch mates; the batch costs as many network calls as its slowest row.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and Appendix D.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax import ode
from scorejax.samplers.predictors import reverse_diffusion_step
from scorejax.sdes import SDE, probability_flow
from scorejax.typing import Sampled, ScoreFn, Shape

CHAIN_STEPS = 1000
"""Length of the chain whose last step denoises a sample, as in the published code."""
FIRST_STEP = 1e-3
"""First step of the solver, as a fraction of the way."""


def probability_flow_ode(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    max_steps: int = 4096,
    denoise: bool = False,
) -> Sampled:
    """Draws latents from the prior and decodes them; see `decode`."""
    z = sde.sample_prior(rng, shape)
    return decode(
        score_fn, z, sde=sde, rtol=rtol, atol=atol, t_min=t_min, max_steps=max_steps,
        denoise=denoise,
    )  # fmt: skip


def decode(
    score_fn: ScoreFn,
    z: Float[Array, "b *d"],
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    max_steps: int = 4096,
    denoise: bool = False,
) -> Sampled:
    """Takes latents at t_max along the flow to data at t_min, sde.sampling_t_min by default.

    With denoise, the noise that is left at t_min is removed by one reverse-diffusion step, for one
    more evaluation. Rows whose solve did not finish in max_steps are NaN. nfe is (b,).
    """
    t_min = sde.sampling_t_min if t_min is None else t_min
    x, nfe = solve_flow(
        score_fn, z, sde.t_max, t_min, sde=sde, rtol=rtol, atol=atol, max_steps=max_steps
    )
    if not denoise:
        return Sampled(x, nfe)
    t = jnp.full(x.shape[:1], t_min, x.dtype)
    _, x_mean = reverse_diffusion_step(sde, score_fn, x, t, jnp.zeros_like(x), CHAIN_STEPS)
    return Sampled(x_mean, nfe + 1)


def encode(
    score_fn: ScoreFn,
    x: Float[Array, "b *d"],
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    max_steps: int = 4096,
) -> Sampled:
    """Takes data at t_min along the flow to latents at t_max: the inverse of `decode`.

    Rows whose solve did not finish in max_steps are NaN. nfe is (b,).
    """
    t_min = sde.sampling_t_min if t_min is None else t_min
    return solve_flow(
        score_fn, x, t_min, sde.t_max, sde=sde, rtol=rtol, atol=atol, max_steps=max_steps
    )


def solve_flow(
    score_fn: ScoreFn,
    x: Float[Array, "b *d"],
    t_from: float,
    t_to: float,
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> Sampled:
    """Solves the probability-flow ODE from t_from to t_to, either way, by Dormand-Prince 5(4)."""
    drift_fn = probability_flow(sde, score_fn)

    def solve(start):
        return ode.dormand_prince(
            lambda x, t: drift_fn(x[None], t[None])[0],
            start,
            t_from,
            t_to,
            # From a thousandth of the way the controller recovers in a few steps.
            first_step=FIRST_STEP,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
        )

    solved = jax.vmap(solve)(x)
    return Sampled(solved.state, solved.nfe)
