# SPDX-License-Identifier: Apache-2.0
"""Sampling under linear measurements y = A x of the data: inpainting, colorization, deblurring.

After every update of a sampler, the part of x_t that A sees is replaced by a noisy copy of the
measurement: x <- x + A^+ (scale y + std A z - A x), with A^+ the pseudo-inverse. Predictors and
correctors are wrapped to do so, so that every pair of them works. The replacement is an
approximation: it does not draw from the exact conditional law if the measured and the other parts
are correlated.

Source: Song et al. 2021, arXiv:2011.13456, Sec. 5 and Appendix I.2.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.linear_operators import LinearOperator, grey_operator, mask_operator
from scorejax.numerics import expand
from scorejax.random import Rng, normal, split
from scorejax.samplers.correctors import Corrector, no_corrector
from scorejax.samplers.predictor_corrector import predictor_corrector
from scorejax.samplers.predictors import Move, Predictor, reverse_diffusion
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn


def replace_measured(
    operator: LinearOperator,
    sde: SDE,
    y: Float[Array, "b *m"],
    x: Float[Array, "b *d"],
    x_mean: Float[Array, "b *d"],
    t: Float[Array, "b"],
    z: Float[Array, "b *d"],
) -> tuple[Float[Array, "b *d"], Float[Array, "b *d"]]:
    """Replaces the measured part of x and x_mean by the measurement y, taken to time t.

    x gets a copy with the noise z, x_mean one without noise. The other part of each is unchanged.
    """
    scale, std = (expand(value, x) for value in sde.marginal(t))
    measured_mean = scale * operator.pinv(y)
    noise = std * operator.project(z)
    return (
        x - operator.project(x) + measured_mean + noise,
        x_mean - operator.project(x_mean) + measured_mean,
    )


def conditioned(
    update: Callable[..., Move], operator: LinearOperator, y: Float[Array, "b *m"]
) -> Any:
    """Wraps a predictor or corrector so that it imposes the measurement y after each call."""

    def conditioned_update(rng: Rng, sde, score_fn, x, t, *args, **kwargs) -> Move:
        update_rng, noise_rng = split(rng)
        moved = update(update_rng, sde, score_fn, x, t, *args, **kwargs)
        z = normal(noise_rng, x.shape, x.dtype)
        x, x_mean = replace_measured(operator, sde, y, moved.x, moved.x_mean, t, z)
        return Move(x, x_mean, moved.nfe)

    return conditioned_update


def sample_given(
    rng: Rng,
    score_fn: ScoreFn,
    shape: tuple[int, ...],
    *,
    sde: SDE,
    operator: LinearOperator,
    y: Float[Array, "b *m"],
    predictor: Predictor = reverse_diffusion,
    corrector: Corrector = no_corrector,
    **chain: Any,
) -> Sampled:
    """Draws x of that shape with A x = y, which holds exactly at the end.

    `chain` holds further arguments of `predictor_corrector`: num_steps, snr, num_inner, t_min,
    denoise. With keys (b,) each row draws from its own key.
    """
    prior_rng, chain_rng = split(rng)
    prior = sde.sample_prior(prior_rng, shape)
    x, nfe = predictor_corrector(
        chain_rng,
        score_fn,
        shape,
        sde=sde,
        predictor=conditioned(predictor, operator, y),
        corrector=conditioned(corrector, operator, y),
        x_init=operator.pinv(y) + prior - operator.project(prior),
        **chain,
    )
    return Sampled(x - operator.project(x) + operator.pinv(y), nfe)


def inpaint(
    rng: Rng,
    score_fn: ScoreFn,
    image: Float[Array, "b *d"],
    mask: Array | np.ndarray,
    *,
    sde: SDE,
    **chain: Any,
) -> Sampled:
    """Draws the entries of `image` where `mask` is 0, given the others; see `sample_given`."""
    operator = mask_operator(mask)
    return sample_given(
        rng, score_fn, image.shape, sde=sde, operator=operator, y=operator.forward(image), **chain
    )


def colorize(
    rng: Rng,
    score_fn: ScoreFn,
    grey: Float[Array, "b h w 1"],
    *,
    sde: SDE,
    **chain: Any,
) -> Sampled:
    """Draws colour images (b, h, w, 3) whose channels average to `grey`; see `sample_given`."""
    operator = grey_operator()
    shape = (*grey.shape[:-1], 3)
    y = operator.forward(jnp.broadcast_to(grey, shape))
    return sample_given(rng, score_fn, shape, sde=sde, operator=operator, y=y, **chain)
