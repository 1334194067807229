# SPDX-License-Identifier: Apache-2.0
"""Predictor-corrector sampling: walk the reverse SDE down a grid of times.

At each time a corrector makes Langevin moves that should leave p_t as it is, then a predictor goes
one step back in time. Grid and order of calls are those of the published code: num_steps times from
t_max to t_min, steps of t_max / num_steps, corrector first, the noise of the last step left out.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 4.2 and Appendix G.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.random import Rng, split
from scorejax.samplers.correctors import Corrector, no_corrector
from scorejax.samplers.predictors import Move, Predictor, reverse_diffusion
from scorejax.schedules import time_grid
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape


class Trajectory(NamedTuple):
    """Frames x (frames, b, *d) of a chain at times t (frames,), and the score evaluations."""

    x: Array
    t: Array
    nfe: Array


def predictor_corrector(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    predictor: Predictor = reverse_diffusion,
    corrector: Corrector = no_corrector,
    num_steps: int = 1000,
    snr: float | Array = 0.16,
    num_inner: int = 1,
    t_min: float | None = None,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples by num_steps predictor steps, each after num_inner corrector moves.

    Rows are independent unless the corrector couples them; with keys (b,) each draws from its own
    key. `snr` is the corrector's and may be traced, so that tuning it does not compile again. The
    chain starts from x_init, or by default from the prior. t_min is sde.sampling_t_min by default.
    With `denoise` the last step adds no noise.

    Raises: ValueError if num_steps < 2, num_inner < 1, or the SDE does not have the chain that the
    predictor inverts with so few steps.
    """
    start, step, inputs = _chain(
        rng, score_fn, shape, x_init, sde, predictor, corrector, num_steps, snr, num_inner, t_min
    )
    end, _ = jax.lax.scan(step, start, inputs)
    return Sampled(end.x_mean if denoise else end.x, end.nfe)


def predictor_corrector_trajectory(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_frames: int,
    predictor: Predictor = reverse_diffusion,
    corrector: Corrector = no_corrector,
    num_steps: int = 1000,
    snr: float | Array = 0.16,
    num_inner: int = 1,
    t_min: float | None = None,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Trajectory:
    """Runs the chain of `predictor_corrector` and keeps num_frames states, evenly spread over it.

    Frames are without the noise of their last update. The last frame is the sample that
    `predictor_corrector` returns for the same arguments: with that noise unless `denoise`.
    Raises: ValueError unless num_frames lies in 1 .. num_steps, and as `predictor_corrector`.
    """
    if not 1 <= num_frames <= num_steps:
        raise ValueError(f"num_frames must lie in 1 .. num_steps={num_steps}; got {num_frames}.")
    start, step, inputs = _chain(
        rng, score_fn, shape, x_init, sde, predictor, corrector, num_steps, snr, num_inner, t_min
    )

    # Every step writes to its frame and the last one stays: memory for num_frames states only.
    def step_and_keep(carry, inputs):
        state, frames = carry
        frame, step_inputs = inputs
        state, _ = step(state, step_inputs)
        return (state, frames.at[frame].set(state.x_mean)), None

    frames = jnp.zeros((num_frames, *start.x.shape), start.x.dtype)
    frame_of_step = np.arange(num_steps) * num_frames // num_steps
    last_step_of_frame = np.searchsorted(frame_of_step, np.arange(num_frames), side="right") - 1
    (end, frames), _ = jax.lax.scan(
        step_and_keep, (start, frames), (jnp.asarray(frame_of_step), inputs)
    )
    frames = frames if denoise else frames.at[-1].set(end.x)
    return Trajectory(frames, inputs[0][last_step_of_frame], end.nfe)


def _chain(
    rng, score_fn, shape, x_init, sde, predictor, corrector, num_steps, snr, num_inner, t_min
):
    """The state before the first step, the step, and the times and keys that it scans over."""
    if num_inner < 1:
        raise ValueError(
            f"num_inner must be at least 1; got {num_inner}. Use no_corrector for none."
        )
    grid = time_grid(sde.t_max, sde.sampling_t_min if t_min is None else t_min, num_steps)
    prior_rng, chain_rng = split(rng)
    x = sde.sample_prior(prior_rng, shape) if x_init is None else x_init
    start = Move(x, x, jnp.int32(0))

    def step(state: Move, inputs: tuple[Array, Rng]) -> tuple[Move, None]:
        time, key = inputs
        corrector_rng, predictor_rng = split(key)
        t = jnp.full(x.shape[:1], time, x.dtype)
        corrected = corrector(
            corrector_rng, sde, score_fn, state.x, t,
            snr=snr, num_inner=num_inner, num_steps=num_steps,
        )  # fmt: skip
        predicted = predictor(predictor_rng, sde, score_fn, corrected.x, t, num_steps)
        nfe = state.nfe + corrected.nfe + predicted.nfe
        return Move(predicted.x, predicted.x_mean, nfe), None

    return start, step, (jnp.asarray(grid, x.dtype), split(chain_rng, num_steps))
