# SPDX-License-Identifier: Apache-2.0
"""Recovery likelihood: the likelihood of an example given a noisier copy of it.

An example and its copy are x_t and x_{t+1} of `RecoveryLevels`. The gradient of the log-likelihood
of y_t given x_{t+1} is that of E(y_t) at draws of the model given x_{t+1}, the negatives, minus
that at the data, the positives; the normaliser cancels. Energies are functions of (y (b, *d),
t (b,) of whole numbers).

Source: Gao et al. 2021, arXiv:2012.08125, Section 3 and Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.energies import score_of
from scorejax.numerics import expand, norm_except_batch, sum_except_batch
from scorejax.random import Rng, draw_rows, fold_in, normal, split
from scorejax.samplers.recovery import at_level, draw_conditional, require_steps
from scorejax.schedules import RecoveryLevels
from scorejax.typing import EnergyFn

X = Float[Array, "b *d"]
Level = Int[Array, "b"]


class Pair(NamedTuple):
    """Data and model given the same noisier copy x_{t+1}, in the variable y_t of energy t.

    `displacement` (b,) is the length of x_t - x_{t+1} for the model's x_t:
    how far its chain has moved.
    """

    positive: X
    negative: X
    displacement: Float[Array, "b"]


class Contrast(NamedTuple):
    """The loss (b,), and the energies of positives and negatives (b,), in nats."""

    loss: Float[Array, "b"]
    positive: Float[Array, "b"]
    negative: Float[Array, "b"]


def draw_levels(rng: Rng, num: int, levels: RecoveryLevels) -> Level:
    """A uniform level 0 .. T - 1 for each of `num` examples."""
    uniform = lambda key, shape: jax.random.randint(key, shape, 0, levels.num_energies)
    return draw_rows(uniform, rng, (num,))


def diffuse(levels: RecoveryLevels, x: X, t: Level, z: X, z_next: X) -> tuple[X, X]:
    """y_t and x_{t+1} of data x, from the noise z of level t and z_next of the next."""
    at = lambda table: at_level(table, t, x)
    x_t = at(levels.scales[:-1]) * x + at(levels.stds[:-1]) * z
    x_next = at(levels.decays[1:]) * x_t + at(levels.sigmas[1:]) * z_next
    return at(levels.energy_scales) * x_t, x_next


def noised_data(rng: Rng, x: X, levels: RecoveryLevels, t: int = 0) -> X:
    """x_t of level t: data x scaled by A_t, with noise of std S_t."""
    z = normal(rng, x.shape, x.dtype)
    return float(levels.scales[t]) * x + float(levels.stds[t]) * z


def with_background(rng: Rng, x: X, share: float) -> X:
    """Data x (b, *d), each example replaced by white noise with the probability `share`.

    The model is then that of a mixture, at most -log(1 - share) nats from the data. Away from the
    data, where denoising at little noise never comes, its energies go up.
    Raises: ValueError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"background needs to lie in [0, 1); got {share}")
    if not share:
        return x
    place_rng, noise_rng = split(rng)
    place = draw_rows(jax.random.uniform, place_rng, x.shape[:1])
    return jnp.where(expand(place, x) < share, normal(noise_rng, x.shape, x.dtype), x)


def draw_pair(
    energy_fn: EnergyFn, rng: Rng, x: X, levels: RecoveryLevels, t: Level, *, num_steps: int = 30
) -> Pair:
    """Diffuses data x to y_t and x_{t+1}, and draws the model's y_t given x_{t+1}.

    The chain has `num_steps` steps; with 0, for fine ladders, it is one draw of the normal
    approximation. Gradients do not pass. If energy_fn binds parameters that are differentiated,
    bind `stop_gradient` of them: it halves the time of tracing.
    Raises: ValueError as `samplers.recovery.require_steps`.
    """
    require_steps(levels, num_steps)
    z_rng, next_rng, chain_rng = split(rng, 3)
    draw = lambda key: normal(key, x.shape, x.dtype)
    positive, x_next = diffuse(levels, x, t, draw(z_rng), draw(next_rng))
    noise = lambda k: draw(fold_in(chain_rng, k))
    negative = draw_conditional(noise, energy_fn, levels, t, x_next, num_steps=num_steps)
    negative = jax.lax.stop_gradient(negative)
    moved = negative / at_level(levels.energy_scales, t, x) - x_next
    return Pair(positive, negative, norm_except_batch(moved))


def contrast(
    energy_fn: EnergyFn, levels: RecoveryLevels, t: Level, positive: X, negative: X
) -> Contrast:
    """Computes w_t s_t^2 (E(positive) - E(negative)) for each example.

    Over draws of the model its mean gradient is s_t^2 w_t times that of the negative
    log-likelihood. The value is no bound: about 0 if the model is right, steadily negative if
    chains do not follow the energy.
    """
    weight = jnp.asarray(levels.loss_weights * levels.step_sizes, positive.dtype)[t]
    energies = energy_fn(positive, t), energy_fn(negative, t)
    return Contrast(weight * (energies[0] - energies[1]), *energies)


def watched(
    result: Contrast, pair: Pair, levels: RecoveryLevels, t: Level
) -> dict[str, Float[Array, "b"]]:
    """Numbers that show whether training is stable, one for each example.

    "energy_gap" is s_t^2 (E(positive) - E(negative)) per dimension: F(negative) - F(positive) for a
    network F in the unit "steps", whose steps have one size at all levels. It stays far below 1,
    since chains are stable only if the curvature of that F is below 4. "displacement" is that of
    `Pair`.
    """
    step_sizes = jnp.asarray(levels.step_sizes, result.loss.dtype)[t]
    gap = step_sizes * (result.positive - result.negative) / pair.positive[0].size
    return {"energy_gap": gap, "displacement": pair.displacement}


def recovery_loss(
    energy_fn: EnergyFn, rng: Rng, x: X, levels: RecoveryLevels, t: Level, *, num_steps: int = 30
) -> Float[Array, "b"]:
    """The `contrast` of data x at levels t with negatives drawn by chains of `num_steps`.

    Makes num_steps gradient calls for the chain, one at least, and evaluates the energy twice.
    Raises: ValueError as `samplers.recovery.require_steps`.
    Source: arXiv:2012.08125, Algorithm 1; weights as in the published code.
    """
    pair = draw_pair(energy_fn, rng, x, levels, t, num_steps=num_steps)
    return contrast(energy_fn, levels, t, pair.positive, pair.negative).loss


def recovery_denoising(
    energy_fn: EnergyFn, rng: Rng, x: X, levels: RecoveryLevels, t: Level
) -> Float[Array, "b"]:
    """Half the squared error |z - S_{t+1} grad E(x_{t+1}, t)|^2 (b,), z the noise of level t + 1.

    It is least where -grad E(., t) is the score of x_{t+1}: energy t is that of the noisier level,
    which is also what `samplers.recovery.normal_approximation` evaluates. For fine ladders only.

    Under the normal approximation -log p(y_t | x_{t+1}) is |z' - sigma_{t+1} grad E|^2 / 2 up to a
    constant, z' the noise that level t + 1 alone adds. Given the data, its mean is sigma_{t+1} z /
    S_{t+1}; that takes its place, with less variance and the same minimiser, and every level has
    the weight (S_{t+1} / sigma_{t+1})^2, so that their errors are of one size.
    Source: arXiv:2012.08125, Section 3; the target is that of Ho et al. 2020, arXiv:2006.11239.
    """
    z = normal(rng, x.shape, x.dtype)
    at = lambda table: at_level(table, t, x)
    x_next = at(levels.scales[1:]) * x + at(levels.stds[1:]) * z
    score = score_of(lambda y: energy_fn(y, t))(x_next)
    return sum_except_batch((z + at(levels.stds[1:]) * score) ** 2) / 2
