# SPDX-License-Identifier: Apache-2.0
"""Ancestral sampling of energies that were trained by denoising, in fewer calls than levels.

After denoising, energy t is that of x_{t+1}, and its gradient tells the mean of the data given it.
So one draw may pass over many levels at once, which chains on recovery conditionals cannot.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.energies import score_of
from scorejax.random import Rng, fold_in, normal, split
from scorejax.schedules import RecoveryLevels
from scorejax.typing import EnergyFn, Sampled, Shape


def sample_ancestral(
    rng: Rng,
    energy_fn: EnergyFn,
    shape: Shape,
    levels: RecoveryLevels,
    *,
    num_calls: int,
    noise_scale: float = 1.0,
) -> Sampled:
    """Draws x_0 by `num_calls` gradient calls, at levels spread evenly over T - 1 .. 1.

    From level t to a level s below, with d = A_t / A_s and sigma^2 = 1 - d^2: x_s is
    (x_t + sigma^2 score) / d plus noise of std sigma S_s / S_t, which is exact for data at a point.
    x_{T-1} is drawn as white noise. With keys (b,) each row draws from its own key.
    Raises: ValueError unless num_calls lies in 2 .. T - 1.
    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2, on a part of the levels.
    """
    top = levels.num_energies - 1
    if not 2 <= num_calls <= top:
        raise ValueError(f"num_calls needs to lie in 2 .. {top}; got {num_calls}.")
    kept = np.round(np.linspace(0, top, num_calls + 1)).astype(int)
    decays = levels.scales[kept[1:]] / levels.scales[kept[:-1]]
    added = 1 - decays**2
    spreads = noise_scale * np.sqrt(added) * levels.stds[kept[:-1]] / levels.stds[kept[1:]]
    start_rng, chain_rng = split(rng)
    x = normal(start_rng, shape)
    tables = [jnp.asarray(table, x.dtype) for table in (decays, added, spreads)]

    def step(x: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
        decay, variance, spread = (table[j] for table in tables)
        level = jnp.full(shape[:1], jnp.asarray(kept[1:] - 1)[j])
        mean = (x + variance * score_of(lambda y: energy_fn(y, level))(x)) / decay
        return mean + spread * normal(fold_in(chain_rng, j), shape, x.dtype), None

    x, _ = jax.lax.scan(step, x, jnp.arange(num_calls)[::-1])
    return Sampled(x, num_calls)
