# SPDX-License-Identifier: Apache-2.0
"""The probability-flow ODE: one smooth, invertible map between data and latents.

`encode` follows it from data to noise and `decode` back; drawing the latents from the prior first
makes it a sampler. The solver is adaptive for each example by itself, so that a row's answer does
not depend on its batch mates; the batch costs as many network calls as its slowest row.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.3 and Appendix D.
"""

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

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
    drift = probability_flow(sde, score_fn)
    # The automatic choice of a first step costs two evaluations, may look beyond the ends of time
    # and returns NaN there; from a thousandth of the way the controller recovers in a few steps.
    first_step = FIRST_STEP * (t_to - t_from)
    # Where the score is NaN the step shrinks until t + dt = t, and then for ever. This ends it; the
    # event does where a step of just this size is let pass.
    smallest_step = float(jnp.finfo(x.dtype).eps) * sde.t_max

    def field(t, y, args):
        return drift(y[None], jnp.full((1,), t, y.dtype))[0]

    def solve(start):
        finite = jnp.all(jnp.isfinite(start))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            t0=t_from,
            t1=t_to,
            dt0=first_step,
            y0=jnp.where(finite, start, 0.0),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, dtmin=smallest_step),
            event=diffrax.Event(lambda t, y, args, **_: ~jnp.all(jnp.isfinite(y))),
            max_steps=max_steps,
            throw=False,
        )
        finished = finite & (solution.result == diffrax.RESULTS.successful)
        # An unfinished solve holds a finite state of some earlier time.
        x = jnp.where(finished, solution.ys[0], jnp.nan)
        # Six evaluations a step, accepted or not, as the last stage of one step is the first of the
        # next; and one for the very first stage.
        return x, 6 * solution.stats["num_steps"] + 1

    return Sampled(*jax.vmap(solve)(x))
