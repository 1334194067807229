# SPDX-License-Identifier: Apache-2.0
"""The probability-flow ODE: one smooth, invertible map between data and latents.

`encode` follows it from data to noise and `decode` back; drawing the latents from the prior first
makes it a sampler. The solver adapts its steps to each row by itself, so that rows are independent;
the batch costs as many network calls as its slowest row.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and Appendix D.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax import ode
from scorejax.parameterize import score_to_denoiser
from scorejax.random import Rng
from scorejax.samplers.predictors import reverse_diffusion_step
from scorejax.sdes import SDE, DiscreteChain, probability_flow
from scorejax.typing import Sampled, ScoreFn, Shape

CHAIN_STEPS = 1000
"""Length of the chain whose last step denoises a sample, as in the published code."""
FIRST_STEP = 1e-3
"""First step of the solver, as a fraction of the time from start to end."""


def probability_flow_ode(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    max_steps: int = 4096,
    denoise: bool = False,
    matmul_precision: str = "highest",
) -> Sampled:
    """Draws latents from the prior and decodes them; see `decode`.

    With keys (b,) each row draws from its own key.
    """
    z = sde.sample_prior(rng, shape)
    return decode(
        score_fn, z, sde=sde, rtol=rtol, atol=atol, t_min=t_min, max_steps=max_steps,
        denoise=denoise, matmul_precision=matmul_precision,
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
    matmul_precision: str = "highest",
) -> Sampled:
    """Takes latents at t_max along the flow to data at t_min, sde.sampling_t_min by default.

    With `denoise`, one more evaluation removes the noise that is left at t_min: by the mean of the
    last reverse-diffusion step of a chain of CHAIN_STEPS steps, or by Tweedie's formula if the SDE
    has no discrete chain. What is denoised is no longer the inverse of `encode`. Rows whose solve
    did not finish in max_steps are NaN. nfe is (b,). matmul_precision is that of the score's
    products, see `ode.dormand_prince`.
    """
    t_min = sde.sampling_t_min if t_min is None else t_min
    x, nfe = solve_flow(
        score_fn, z, sde.t_max, t_min, sde=sde, rtol=rtol, atol=atol, max_steps=max_steps,
        matmul_precision=matmul_precision,
    )  # fmt: skip
    if not denoise:
        return Sampled(x, nfe)
    t = jnp.full(x.shape[:1], t_min, x.dtype)
    with jax.default_matmul_precision(matmul_precision):
        if isinstance(sde, DiscreteChain):
            _, x = reverse_diffusion_step(sde, score_fn, x, t, jnp.zeros_like(x), CHAIN_STEPS)
        else:
            x = score_to_denoiser(sde, t, x, score_fn(x, t))
    return Sampled(x, nfe + 1)


def encode(
    score_fn: ScoreFn,
    x: Float[Array, "b *d"],
    *,
    sde: SDE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_min: float | None = None,
    max_steps: int = 4096,
    matmul_precision: str = "highest",
) -> Sampled:
    """Takes data at t_min along the flow to latents at t_max: the inverse of `decode`.

    Rows whose solve did not finish in max_steps are NaN. nfe is (b,).
    """
    t_min = sde.sampling_t_min if t_min is None else t_min
    return solve_flow(
        score_fn, x, t_min, sde.t_max, sde=sde, rtol=rtol, atol=atol, max_steps=max_steps,
        matmul_precision=matmul_precision,
    )  # fmt: skip


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
    matmul_precision: str = "highest",
) -> Sampled:
    """Solves the probability-flow ODE from t_from to t_to, either way, by Dormand-Prince 5(4)."""
    drift_fn = probability_flow(sde, score_fn)

    def solve(start):
        return ode.dormand_prince(
            lambda x, t: drift_fn(x[None], t[None])[0],
            start,
            t_from,
            t_to,
            # From so short a first step the controller recovers in a few steps.
            first_step=FIRST_STEP,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            matmul_precision=matmul_precision,
        )

    solved = jax.vmap(solve)(x)
    return Sampled(solved.state, solved.nfe)
