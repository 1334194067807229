# SPDX-License-Identifier: Apache-2.0
"""Langevin dynamics on one energy, at temperatures that fall along the chain.

An energy that is not conditioned on a noise level has no levels to anneal. A temperature that is
high at first takes the chain over its barriers instead.

Source: Li et al. 2019, arXiv:1910.07762, Section 4, as in Pang et al. 2020, arXiv:2007.03317.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.energies import Energy, score_of
from scorejax.random import Rng, fold_in, normal


def temperatures(
    num_hot: int, num_cooling: int, num_freezing: int, *, hottest: float = 100.0
) -> Float[np.ndarray, "steps"]:
    """Temperatures: num_hot at `hottest`, num_cooling evenly down to 1, num_freezing towards 0."""
    cooling = np.linspace(hottest, 1.0, num_cooling, endpoint=False)
    freezing = np.linspace(1.0, 0.0, num_freezing, endpoint=False)
    return np.concatenate([np.full(num_hot, hottest), cooling, freezing])


def tempered_langevin(
    rng: Rng,
    energy: Energy,
    x_init: Float[Array, "b *d"],
    *,
    step_size: float,
    temperatures: Float[np.ndarray, "steps"],
    sigma: float = 0.0,
    num_frames: int = 1,
) -> Float[Array, "frames b *d"]:
    """Moves x <- x - step_size^2 / 2 grad E + step_size sqrt(T) xi, once for each temperature T.

    Returns num_frames states, evenly spread over the chain; the last is its end. If sigma > 0, the
    end is denoised: x - sigma^2 grad E, the mean of the data given x = data + noise of level sigma.
    With keys (b,) each row draws from its own key. Makes one gradient call a step, and one more
    if sigma > 0.
    Raises: ValueError unless num_frames lies in 1 .. the number of temperatures.
    """
    num_steps = len(temperatures)
    if not 1 <= num_frames <= num_steps:
        raise ValueError(f"num_frames needs to lie in 1 .. {num_steps}; got {num_frames}.")
    score = score_of(energy)
    table = jnp.asarray(temperatures, x_init.dtype)

    def step(number: Array, x: Array) -> Array:
        noise = normal(fold_in(rng, number), x.shape, x.dtype)
        spread = step_size * jnp.sqrt(table[number])
        return x + step_size**2 / 2 * score(x) + spread * noise

    def frame(x: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        x = jax.lax.fori_loop(*bounds, step, x)
        return x, x

    ends = np.linspace(0, num_steps, num_frames + 1).round().astype(np.int32)
    x, frames = jax.lax.scan(frame, x_init, (jnp.asarray(ends[:-1]), jnp.asarray(ends[1:])))
    return frames.at[-1].set(x + sigma**2 * score(x)) if sigma else frames
