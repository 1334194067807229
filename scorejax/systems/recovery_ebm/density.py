# SPDX-License-Identifier: Apache-2.0
"""The density of level 0: log p up to a constant, and the constant with bounds from both sides.

Level 0 is the data with a little noise, so it is the density of x_0 = A_0 x + S_0 z. An energy that
was trained by denoising is that of the noisier level: its energy 0 is the density of x_1. The
constant follows from annealed importance sampling up and down the ladder of energies, whose top is
nearly white noise.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from scorejax import likelihood as likelihoods
from scorejax.data.toy import PlaneDistribution
from scorejax.data.view import ImageView
from scorejax.density.annealed_importance import NUM_TUNING, tuned_step_sizes
from scorejax.density.annealing_path import Path, level_path
from scorejax.density.bidirectional import Sandwich, bidirectional_normalizer
from scorejax.density.diffusion_importance import NoiseLadder
from scorejax.numerics import gaussian_log_prob
from scorejax.objectives.recovery import noised_data
from scorejax.random import normal, row_keys
from scorejax.samplers.hamiltonian import LogProb, value_and_score
from scorejax.samplers.long_run import adapted_step_size, long_run
from scorejax.schedules import RecoveryLevels
from scorejax.typing import Array, Batch, PRNGKeyArray, Variables

if TYPE_CHECKING:
    from scorejax.systems.recovery_ebm.model import RecoveryModel


def log_prob_at(model: "RecoveryModel", variables: Variables) -> Callable[[Array, Array], Array]:
    """(t, x (b, *d)) -> log p up to a constant (b,), in nats, of the noisy data of energy t.

    They are x_t, of which y_t is a multiple, or x_{t+1} if the energies were trained by denoising.
    """
    energy_fn, dim = model.energy(variables), np.prod(model.data.shape)
    denoises = model.objective == "denoising"
    scales = jnp.asarray(model.levels.energy_scales, jnp.float32)
    scales = jnp.ones_like(scales) if denoises else scales

    def log_prob(t: Array, x: Array) -> Array:
        level = jnp.full(len(x), t, jnp.int32)
        return dim * jnp.log(scales[t]) - energy_fn(scales[t] * x, level)

    return log_prob


def data_log_prob(model: "RecoveryModel", variables: Variables) -> LogProb:
    """x (b, *d) -> log p up to a constant (b,), in nats, of data with the noise of `data_level`."""
    at_level = log_prob_at(model, variables)
    return lambda x: at_level(jnp.zeros((), jnp.int32), x)


def likelihood(model: "RecoveryModel") -> Callable[[Variables, Batch], dict[str, Array]]:
    """measure(variables, {"image" or "x", "rng": keys (b,)}) -> log_prob (b,), up to its constant.

    An example gets the noise of `data_level` from its key. Images have "bits_per_dim" too; both
    lack the normaliser. Makes one evaluation of the network, "nfe".
    """
    data, dim = model.data, int(np.prod(model.data.shape))

    def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
        x = noised_data(batch["rng"], batch[data.field], model.levels, data_level(model))
        log_prob = data_log_prob(model, variables)(x)
        measured = {"log_prob": log_prob, "nfe": jnp.ones(len(x), jnp.int32)}
        if isinstance(data, ImageView):
            units = {"levels": data.levels, "data_range": data.data_range}
            measured["bits_per_dim"] = likelihoods.bits_per_dim(log_prob, dim, **units)
        return measured

    return measure


def data_level(model: "RecoveryModel") -> int:
    """The level of the noisy data whose density energy 0 is: 0, or 1 after denoising."""
    return int(model.objective == "denoising")


def noised_truth(model: "RecoveryModel") -> PlaneDistribution:
    """The known distribution of the data with the noise of `data_level`.

    Raises: ValueError if the model's data have no known distribution.
    """
    if model.truth is None:
        raise ValueError("the distribution of the data needs to be known: a toy of the plane")
    level = data_level(model)
    return model.truth.noised(float(model.levels.scales[level]), float(model.levels.stds[level]))


def ladder_path(model: "RecoveryModel", variables: Variables, num_temperatures: int) -> Path:
    """The path from N(0, I) through the energies T - 1 .. 0.

    Each energy has as many temperatures, one at least and about `num_temperatures` in all.
    """
    at_level, num = log_prob_at(model, variables), model.levels.num_energies

    def log_prob(position: Array, x: Array) -> Array:
        energy = at_level(jnp.clip(num - position, 0, num - 1), x)
        return jnp.where(position == 0, gaussian_log_prob(x, 1.0), energy)

    each = max(round(num_temperatures / num), 1)
    return level_path(log_prob, num, np.linspace(0, 1, each + 1))


def noise_ladder(model: "RecoveryModel", variables: Variables, num_steps: int) -> NoiseLadder:
    """The levels T - 1 .. 1 of energies by denoising in `num_steps` steps, one a level at most.

    Energy t is that of x_{t+1}, so that energy 0 is the density of the lowest of them.
    """
    at_level, top = log_prob_at(model, variables), model.levels.num_energies - 1
    kept = np.round(np.linspace(1, top, min(num_steps, top - 1) + 1)).astype(int)
    energies = jnp.asarray(kept[1:] - 1)

    def score(j: Array, x: Array) -> Array:
        return value_and_score(lambda x: at_level(energies[j], x), x)[1]

    return NoiseLadder(score, model.levels.scales[kept[1:]] / model.levels.scales[kept[:-1]])


def normalizer(
    model: "RecoveryModel",
    *,
    num_walks: int,
    num_temperatures: int,
    num_chain_steps: int,
    chunk: int | None = None,
    tolerance: float = 0.2,
) -> Callable[[Variables, PRNGKeyArray, Array], Sandwich]:
    """(variables, rng, x (num_walks, *d) of the data) -> bounds of log Z at level 0.

    Walks go down the ladder and back up by MALA. Those back start from chains of MALA, of
    `num_chain_steps` steps, that begin at the data; the upper bound is as good as these, see
    `density.bidirectional`.
    """

    def bounds(variables: Variables, rng: PRNGKeyArray, x: Array) -> Sandwich:
        keys = jax.random.split(rng, 8)
        path = ladder_path(model, variables, num_temperatures)
        shape = (num_walks, *model.data.shape)
        few = normal(keys[0], (min(NUM_TUNING, num_walks), *model.data.shape))
        sizes = tuned_step_sizes(keys[1], path, few, num_steps=1)

        log_prob = data_log_prob(model, variables)
        x = noised_data(keys[2], x, model.levels, data_level(model))
        adapted = adapted_step_size(keys[3], log_prob, x[: len(few)], adjust="mala", first=0.01)
        options = {"adjust": "mala", "record_at": np.array([num_chain_steps])}
        chains = row_keys(keys[4], num_walks)
        draws = long_run(chains, log_prob, x, step_size=adapted.step_size, **options).x[-1]
        return bidirectional_normalizer(
            row_keys(keys[5], num_walks),
            row_keys(keys[6], num_walks),
            path,
            normal(keys[7], shape),
            draws,
            step_sizes=sizes,
            chunk=chunk,
            tolerance=tolerance,
        )

    return jax.jit(bounds)


def caveats(model: "RecoveryModel") -> list[str]:
    """Sentences that a reader of densities of this model needs."""
    noise = float(model.levels.stds[data_level(model)])
    sentences = [
        f"the density is that of data with noise of std {noise:.3g}, not of discrete data",
        "the upper bound of log Z holds if chains of MALA from training examples have reached the "
        "density of the model",
    ]
    if isinstance(model.data, ImageView) and not model.data.uniform_dequantization:
        sentences.append(
            "the model was trained on grey levels, and is measured on dequantised ones"
        )
    relaxed = relaxation(model.levels, model.num_chain_steps)
    if relaxed < 0.99:
        sentences.append(
            f"chains of {model.num_chain_steps} steps make {relaxed:.2g} of a relaxation time at "
            "the slowest level: the energies are no log-densities of data, see "
            "docs/papers/recovery_likelihood.md"
        )
    return sentences


def relaxation(levels: RecoveryLevels, num_steps: int) -> float:
    """How many relaxation times a chain of num_steps makes at the slowest level, at least.

    Along a direction in which the energy is flat, the conditional has the precision 1 / sigma^2 of
    level t + 1, and a step of size s^2 takes the chain s^2 / (2 sigma^2) of the way. Below 1, the
    energies that training finds are those whose short chains give data, not log-densities of data.
    """
    if not num_steps:  # One draw of the normal approximation, with no memory of the start.
        return np.inf
    rates = levels.step_sizes[:-1] * levels.recovery_precisions[:-1] / 2
    return float(num_steps * rates.min())
