# SPDX-License-Identifier: Apache-2.0
"""Langevin dynamics on recovery conditionals: from noise to data, one short chain a level.

Energy t is that of y_t, to which level t + 1 adds noise: x_{t+1} = y_t + sigma_{t+1} z. So given
x_{t+1} the density of y_t is

    log p(y_t | x_{t+1}) = -E(y_t, t) - |y_t - x_{t+1}|^2 / (2 sigma_{t+1}^2) + const,

close to a Gaussian, which a short chain from x_{t+1} samples. At the top level the second term is
left out. Steps have the size s_t^2 of `RecoveryLevels.step_sizes`. Energies are functions of
(y (b, *d), t (b,) of whole numbers). There is no Metropolis step and no clipping.

Source: Gao et al. 2021, arXiv:2012.08125, Section 3 and Algorithm 2.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.energies import Energy, score_of
from scorejax.linear_operators import LinearOperator
from scorejax.numerics import expand, sum_except_batch
from scorejax.random import Rng, draw_rows, fold_in, normal, split
from scorejax.samplers.langevin import impose, mixed_noise
from scorejax.schedules import RecoveryLevels, Table
from scorejax.typing import EnergyFn, Sampled, Shape

X = Float[Array, "b *d"]
Level = Int[Array, "b"]
Noise = Callable[[Array, Array], X]
"""(t, k) -> the noise of step k at level t."""
Impose = Callable[[X, Array, Array, Array, Array], X]
"""(x, scale, std, t, k) -> x with its measured part at that scale and noise."""

COARSEST = 0.2
"""Largest sigma_{t+1} below the top for which the normal approximation is offered."""


def at_level(table: Table, t: Level, like: X) -> Float[Array, "b *_ones"]:
    """table[t] for each row, with axes to broadcast against `like`."""
    return expand(jnp.asarray(table, like.dtype)[t], like)


def conditional_energy(energy_fn: EnergyFn, levels: RecoveryLevels, t: Level, x_next: X) -> Energy:
    """The energy y_t -> -log p(y_t | x_{t+1}), up to a constant: (b,)."""
    precision = jnp.asarray(levels.recovery_precisions, x_next.dtype)[t]
    return lambda y: energy_fn(y, t) + precision / 2 * sum_except_batch((y - x_next) ** 2)


def langevin_step(score: X, y: X, step_size: Float[Array, "b *_ones"], z: X) -> X:
    """y + s^2 / 2 score + s z, for the squared step size s^2."""
    return y + step_size / 2 * score + jnp.sqrt(step_size) * z


def langevin_chain(
    noise: Callable[[Array], X],
    energy_fn: EnergyFn,
    levels: RecoveryLevels,
    t: Level,
    x_next: X,
    *,
    num_steps: int,
    constrain: Callable[[X, Array], X] = lambda y, k: y,
) -> X:
    """y_t after `num_steps` Langevin steps from x_{t+1} on its recovery conditional.

    `noise(k)` is the noise of step k, of variance 1 or less; `constrain(y, k)` follows the step.
    Makes num_steps gradient calls.
    """
    score = score_of(conditional_energy(energy_fn, levels, t, x_next))
    step_size = at_level(levels.step_sizes, t, x_next)

    def step(y: X, k: Array) -> tuple[X, None]:
        return constrain(langevin_step(score(y), y, step_size, noise(k)), k), None

    return jax.lax.scan(step, x_next, jnp.arange(num_steps))[0]


def normal_approximation(
    noise: X, energy_fn: EnergyFn, levels: RecoveryLevels, t: Level, x_next: X
) -> X:
    """One draw of y_t ~ N(x_{t+1} - sigma^2 grad E(x_{t+1}), sigma^2 I), sigma that of level t + 1.

    It is the conditional to first order: mean and variance are off by a share sigma^2 / tau^2, with
    tau^2 the variance of y_t. In directions in which data are flat, that is no small number at the
    lowest levels: there a draw has a variance of sigma^2 or more whatever the energy, so that
    energies cannot be trained by such negatives (`objectives.recovery.recovery_denoising` can).
    Makes one gradient call. Source: arXiv:2012.08125, Section 3.
    """
    score = score_of(lambda y: energy_fn(y, t))(x_next)
    sigma = at_level(levels.sigmas[1:], t, x_next)
    return x_next + sigma**2 * score + sigma * noise


def draw_conditional(
    noise: Callable[[Array], X],
    energy_fn: EnergyFn,
    levels: RecoveryLevels,
    t: Level,
    x_next: X,
    *,
    num_steps: int,
    constrain: Callable[[X, Array], X] = lambda y, k: y,
) -> X:
    """y_t by `langevin_chain`, or by `normal_approximation` if num_steps is 0."""
    arguments = energy_fn, levels, t, x_next
    if num_steps:
        return langevin_chain(noise, *arguments, num_steps=num_steps, constrain=constrain)
    first = jnp.zeros((), jnp.int32)
    return constrain(normal_approximation(noise(first), *arguments), first)


def sample(
    rng: Rng,
    energy_fn: EnergyFn,
    shape: Shape,
    levels: RecoveryLevels,
    *,
    num_steps: int = 30,
    noise_scale: float = 1.0,
    x_init: X | None = None,
) -> Sampled:
    """Draws x_0 by a chain of `num_steps` a level, or one normal draw a level if num_steps is 0.

    Starts from x_init, or else from N(0, I). The noise of the chains is multiplied by
    `noise_scale`; the published samples have 0.99. x_0 keeps noise of std levels.stds[0]. With keys
    (b,) each row draws from its own key.
    Raises: ValueError as `require_steps`.
    """
    path, nfe = sample_path(
        rng, energy_fn, shape, levels,
        num_steps=num_steps, noise_scale=noise_scale, x_init=x_init, num_frames=1,
    )  # fmt: skip
    return Sampled(path[-1], nfe)


def sample_path(
    rng: Rng,
    energy_fn: EnergyFn,
    shape: Shape,
    levels: RecoveryLevels,
    *,
    num_steps: int = 30,
    noise_scale: float = 1.0,
    x_init: X | None = None,
    num_frames: int | None = None,
) -> Sampled:
    """The samples of `sample` at `num_frames` levels, evenly spread; the last frame is x_0.

    By default there is a frame for each level T - 1 .. 0.
    Raises: ValueError unless num_frames lies in 1 .. T, and as `require_steps`.
    """
    start_rng, chain_rng = split(rng)
    x = normal(start_rng, shape) if x_init is None else x_init
    noise = lambda t, k: noise_scale * normal(_step_key(chain_rng, t, k), shape, x.dtype)
    return descend(noise, energy_fn, x, levels, num_steps=num_steps, num_frames=num_frames)


def interpolate(
    rng: Rng,
    energy_fn: EnergyFn,
    shape: Shape,
    num: int,
    levels: RecoveryLevels,
    *,
    num_steps: int = 30,
    noise_scale: float = 1.0,
) -> Sampled:
    """Draws rows of `num` samples that change gradually: x (b, num, *d) for shape (b, *d).

    A row has two streams of noise, the start included, which its samples mix at angles from 0 to
    pi / 2: on the sphere, so that every sample has noise of variance 1.
    Raises: ValueError if num < 2, and as `require_steps`.
    Source: arXiv:2012.08125, Section 4.
    """
    if num < 2:
        raise ValueError(f"interpolate needs num >= 2; got {num}.")
    start_rng, chain_rng = split(rng)
    pair = lambda key, shape: jax.random.normal(key, (2, *shape))
    mixed = lambda key: mixed_noise(*draw_rows(pair, key, shape, axis=1), num)
    noise = lambda t, k: noise_scale * mixed(_step_key(chain_rng, t, k))
    frames, nfe = descend(
        noise, energy_fn, mixed(start_rng), levels, num_steps=num_steps, num_frames=1
    )
    return Sampled(frames[-1].reshape(shape[0], num, *shape[1:]), nfe)


def sample_given(
    rng: Rng,
    energy_fn: EnergyFn,
    shape: Shape,
    levels: RecoveryLevels,
    *,
    operator: LinearOperator,
    y: Float[Array, "b *m"],
    num_steps: int = 30,
    noise_scale: float = 1.0,
) -> Sampled:
    """Draws samples x with operator.forward(x) = y: inpainting if the operator is a mask.

    Before each level and after each step the measured part becomes a copy of y with fresh noise of
    the level, and at the end y itself. Like `inverse.sample_given` this does not draw from the
    exact conditional law.
    Raises: ValueError as `require_steps`.
    Source: arXiv:2012.08125, Section 4.
    """
    start_rng, chain_rng, measured_rng = split(rng, 3)
    noise = lambda t, k: noise_scale * normal(_step_key(chain_rng, t, k), shape)

    def measured(x: X, scale: Array, std: Array, t: Array, k: Array) -> X:
        z = normal(_step_key(measured_rng, t, k), shape, x.dtype)
        return impose(operator, scale * y, x, std, z)

    x = normal(start_rng, shape)
    frames, nfe = descend(
        noise, energy_fn, x, levels, num_steps=num_steps, num_frames=1, measured=measured
    )
    x = frames[-1]
    return Sampled(impose(operator, y, x, jnp.zeros((), x.dtype), jnp.zeros_like(x)), nfe)


def descend(
    noise: Noise,
    energy_fn: EnergyFn,
    x: X,
    levels: RecoveryLevels,
    *,
    num_steps: int,
    num_frames: int | None = None,
    measured: Impose = lambda x, scale, std, t, k: x,
) -> Sampled:
    """Frames (num_frames, b, *d) of x_T's way down the levels T - 1 .. 0, with noise(t, k).

    `measured` imposes a measurement on x_{t+1}, as step -1, and on y_t after each step.
    Raises: ValueError unless num_frames lies in 1 .. T, and as `require_steps`.
    """
    require_steps(levels, num_steps)
    num = levels.num_energies
    num_frames = num if num_frames is None else num_frames
    if not 1 <= num_frames <= num:
        raise ValueError(f"num_frames needs to lie in 1 .. {num}; got {num_frames}.")
    scales, stds, energy_scales = (
        jnp.asarray(table, x.dtype) for table in (levels.scales, levels.stds, levels.energy_scales)
    )

    def level(x: X, t: Array) -> X:
        constrain = lambda y, k: measured(y, scale * scales[t], scale * stds[t], t, k)
        scale, minus_one = energy_scales[t], jnp.full((), -1, jnp.int32)
        x = measured(x, scales[t + 1], stds[t + 1], t, minus_one)
        y = draw_conditional(
            functools.partial(noise, t), energy_fn, levels, jnp.full(x.shape[:1], t), x,
            num_steps=num_steps, constrain=constrain,
        )  # fmt: skip
        return y / scale

    # Level T - 1 - j writes to its frame and the last one stays: memory for num_frames only.
    def step(state: tuple[X, Array], j: Array) -> tuple[tuple[X, Array], None]:
        x, frames = state
        x = level(x, num - 1 - j)
        return (x, frames.at[((j + 1) * num_frames - 1) // num].set(x)), None

    frames = jnp.zeros((num_frames, *x.shape), x.dtype)
    (x, frames), _ = jax.lax.scan(step, (x, frames), jnp.arange(num))
    return Sampled(frames, num * max(num_steps, 1))


def require_steps(levels: RecoveryLevels, num_steps: int) -> None:
    """Raises ValueError unless chains of num_steps are possible on these levels.

    num_steps is 0 only if the levels are fine enough for the normal approximation; otherwise steps
    of squared size s^2 need s^2 lam < 4, or they diverge. lam is at least 1 / sigma^2; how much the
    energy adds is known with the rule "conditional" alone, where s^2 lam is step_scale.
    """
    if num_steps < 0:
        raise ValueError(f"num_steps needs to be at least 0; got {num_steps}")
    coarsest = levels.sigmas[1:-1].max()
    if not num_steps and coarsest > COARSEST:
        raise ValueError(
            "num_steps=0, one normal draw a level, needs levels whose sigma is at most "
            f"{COARSEST}, such as the 1000 of the fine ladder; got {coarsest:.2g} among "
            f"{levels.num_energies}. Take 500 fine levels or more, or chains of 30 steps."
        )
    if num_steps and levels.step_rule == "conditional" and not levels.step_scale < 4:
        raise ValueError(
            "Langevin steps diverge where s^2 lam >= 4, which is step_scale with "
            f"step_rule='conditional'; got {levels.step_scale:g}, 0.3 is usual"
        )
    largest = (levels.step_sizes * levels.recovery_precisions).max()
    if num_steps and not largest < 4:
        raise ValueError(
            "Langevin steps diverge where s^2 / sigma^2 >= 4; step_scale needs to be below "
            f"{4 * levels.step_scale / largest:.3g} on these levels, got {levels.step_scale:g}"
        )


def _step_key(rng: Rng, t: Array, k: Array) -> Rng:
    return fold_in(fold_in(rng, t), k + 1)
