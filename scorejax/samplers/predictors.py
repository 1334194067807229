# SPDX-License-Identifier: Apache-2.0
"""Predictors: one step of the reverse-time SDE, or of its probability flow, from t back in time.

A predictor is a function (rng, sde, score_fn, x, t, num_steps) -> Move that draws its own noise,
each row from its own key if there are several; num_steps sets the size of the step, t_max /
num_steps. The `..._step` functions are the arithmetic alone, with the noise z as an argument, and
return (x, x_mean).

Source: Song et al. 2021, arXiv:2011.13456, Appendices E, F and G.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from jaxtyping import Array, Float

from scorejax.choices import unknown
from scorejax.numerics import expand
from scorejax.random import Rng, normal
from scorejax.sdes import SDE, discrete_chain, probability_flow, reverse_drift
from scorejax.typing import ScoreFn

X: TypeAlias = Float[Array, "b *d"]
Times: TypeAlias = Float[Array, "b"]


class Move(NamedTuple):
    """A new x, the same without the noise of this update, and the number of score evaluations."""

    x: Array
    x_mean: Array
    nfe: int | Array


Predictor: TypeAlias = Callable[[Rng, SDE, ScoreFn, X, Times, int], Move]


def euler_maruyama_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """Euler-Maruyama for the reverse-time SDE."""
    size = sde.t_max / num_steps
    x_mean = x - reverse_drift(sde, score_fn)(x, t) * size
    return x_mean + expand(sde.diffusion(t), x) * math.sqrt(size) * z, x_mean


def euler_maruyama(rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int) -> Move:
    """Euler-Maruyama for the reverse-time SDE."""
    z = normal(rng, x.shape, x.dtype)
    return Move(*euler_maruyama_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def reverse_diffusion_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """Reverses one transition of the discrete chain as the reverse-time SDE is discretised.

    Raises: ValueError if the SDE has no discrete chain.
    """
    chain = discrete_chain(sde, "reverse_diffusion")
    scale, std = (expand(value, x) for value in chain.transition(t, num_steps))
    x_mean = (2 - scale) * x + std**2 * score_fn(x, t)
    return x_mean + std * z, x_mean


def reverse_diffusion(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """Reverses one transition of the discrete chain as the reverse-time SDE is discretised.

    Raises: ValueError if the SDE has no discrete chain.
    """
    z = normal(rng, x.shape, x.dtype)
    return Move(*reverse_diffusion_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def ancestral_step(
    sde: SDE, score_fn: ScoreFn, x: X, t: Times, z: X, num_steps: int
) -> tuple[X, X]:
    """One step of ancestral sampling of the discrete chain.

    Raises: ValueError for sub-VP, and if the SDE has no discrete chain.
    """
    chain = discrete_chain(sde, "ancestral")
    noise_std = expand(chain.ancestral_std(t, num_steps), x)
    scale, std = (expand(value, x) for value in chain.transition(t, num_steps))
    x_mean = (x + std**2 * score_fn(x, t)) / scale
    return x_mean + noise_std * z, x_mean


def ancestral(rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int) -> Move:
    """One step of ancestral sampling of the discrete chain.

    Raises: ValueError for sub-VP, and if the SDE has no discrete chain.
    Source: for VP Ho et al. 2020, arXiv:2006.11239, Alg. 2; for VE arXiv:2011.13456, Appendix F.
    """
    z = normal(rng, x.shape, x.dtype)
    return Move(*ancestral_step(sde, score_fn, x, t, z, num_steps), nfe=1)


def euler_flow(rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int) -> Move:
    """One Euler step of the probability-flow ODE. No noise."""
    x = x - probability_flow(sde, score_fn)(x, t) * (sde.t_max / num_steps)
    return Move(x, x, nfe=1)


def reverse_diffusion_flow(
    rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int
) -> Move:
    """The probability flow of the discrete chain: half the score and no noise.

    Raises: ValueError if the SDE has no discrete chain.
    """
    chain = discrete_chain(sde, "reverse_diffusion_flow")
    scale, std = (expand(value, x) for value in chain.transition(t, num_steps))
    x = (2 - scale) * x + std**2 * score_fn(x, t) / 2
    return Move(x, x, nfe=1)


def no_predictor(rng: Rng, sde: SDE, score_fn: ScoreFn, x: X, t: Times, num_steps: int) -> Move:
    """Returns x unchanged, for sampling by the corrector alone; nothing is denoised at the end."""
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
    """The predictor of that name. Raises: ValueError if the name is unknown; it lists all names."""
    if name not in PREDICTORS:
        raise unknown("predictor", name, PREDICTORS)
    return PREDICTORS[name]
