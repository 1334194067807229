# SPDX-License-Identifier: Apache-2.0
"""Predictors: one step of the reverse-time SDE, or of its probability flow, from t back in time.

A predictor is a function (rng, sde, score_fn, x, t, num_steps) -> Move that draws its own noise;
num_steps sets the size of the step, t_max / num_steps. The `..._step` functions are the arithmetic
alone, with the noise z as an argument, and return (x, x_mean).

Source: Song et al. 2021, arXiv:2011.13456, Appendices E, F and G.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import unknown
from scorejax.numerics import expand
from scorejax.sdes import SDE, probability_flow, reverse_drift
from scorejax.typing import ScoreFn

X: TypeAlias = Float[Array, "b *d"]
Times: TypeAlias = Float[Array, "b"]


class Move(NamedTuple):
    """What an update returns: the new x, the same without this update's noise, and its cost."""

    x: Array
    x_mean: Array
    nfe: int | Array


Predictor: TypeAlias = Callable[[PRNGKeyArray, SDE, ScoreFn, X, Times, int], Move]


def euler_maruyama_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """Euler-Maruyama for the reverse-time SDE."""
    size = sde.t_max / num_steps
    x_mean = x - reverse_drift(sde, score_fn)(x, t) * size
    return x_mean + expand(sde.diffusion(t), x) * math.sqrt(size) * z, x_mean


def euler_maruyama(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """Euler-Maruyama for the reverse-time SDE."""
    z = jax.random.normal(rng, x.shape, x.dtype)
    return Move(*euler_maruyama_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def reverse_diffusion_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """Reverses one transition of the discrete chain as the SDE is discretised."""
    scale, std = (expand(value, x) for value in sde.transition(t, num_steps))
    x_mean = (2 - scale) * x + std**2 * score_fn(x, t)
    return x_mean + std * z, x_mean


def reverse_diffusion(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """Reverses one transition of the discrete chain as the SDE is discretised."""
    z = jax.random.normal(rng, x.shape, x.dtype)
    return Move(*reverse_diffusion_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def ancestral_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """Ancestral sampling of the discrete chain, which sub-VP does not have: ValueError."""
    noise_std = expand(sde.ancestral_std(t, num_steps), x)
    scale, std = (expand(value, x) for value in sde.transition(t, num_steps))
    x_mean = (x + std**2 * score_fn(x, t)) / scale
    return x_mean + noise_std * z, x_mean


def ancestral(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """Ancestral sampling of the discrete chain, which sub-VP does not have: ValueError.

    Source: for VP Ho et al. 2020, arXiv:2006.11239, Alg. 2; for VE arXiv:2011.13456, Appendix F.
    """
    z = jax.random.normal(rng, x.shape, x.dtype)
    return Move(*ancestral_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def euler_flow(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """One Euler step of the probability-flow ODE. No noise."""
    x = x - probability_flow(sde, score_fn)(x, t) * (sde.t_max / num_steps)
    return Move(x, x, nfe=1)


def reverse_diffusion_flow(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """The probability flow of the discrete chain: half the score and no noise."""
    scale, std = (expand(value, x) for value in sde.transition(t, num_steps))
    x = (2 - scale) * x + std**2 * score_fn(x, t) / 2
    return Move(x, x, nfe=1)


def no_predictor(
    rng: PRNGKeyArray, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """Stays where it is: sampling by the corrector alone, with nothing to denoise at the end."""
    return Move(x, x, nfe=0)


PREDICTORS: Mapping[str, Predictor] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "euler_flow": euler_flow,
    "reverse_diffusion_flow": reverse_diffusion_flow,
    "none": no_predictor,
}


def get_predictor(name: str) -> Predictor:
    """The predictor of that name. Raises: ValueError with the nearest name and all of them."""
    if name not in PREDICTORS:
        raise unknown("predictor", name, PREDICTORS)
    return PREDICTORS[name]
