# SPDX-License-Identifier: Apache-2.0
"""Attacks that climb the gradient of a loss inside a ball: one step, or projected steps.

Sources: Goodfellow et al. 2015, arXiv:1412.6572 (FGSM); Madry et al. 2018, arXiv:1706.06083 (PGD).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.attacks.ball import Adversarial, Ball, LogitsFn, judged
from scorejax.attacks.losses import ATTACK_LOSSES, margin
from scorejax.choices import choose
from scorejax.numerics import expand
from scorejax.random import Rng, fold_in


class Climbed(NamedTuple):
    """The objective of an ascent at some inputs, and how iterates are ranked.

    An iterate is better than another if it alone is `wrong`, or both or neither are and its
    `rank` is larger.
    """

    value: Float[Array, "b"]
    wrong: Bool[Array, "b"]
    rank: Float[Array, "b"]


ClimbFn = Callable[[Float[Array, "b *d"]], Climbed]


class Best(NamedTuple):
    """The best iterates so far."""

    x: Float[Array, "b *d"]
    wrong: Bool[Array, "b"]
    rank: Float[Array, "b"]

    @classmethod
    def none(cls, x: Float[Array, "b *d"]) -> "Best":
        """The clean inputs, worse than any iterate."""
        return cls(x, jnp.zeros(len(x), bool), jnp.full(len(x), -jnp.inf, x.dtype))


def fgsm(
    logits_fn: LogitsFn,
    x: Float[Array, "b *d"],
    label: Int[Array, "b"],
    *,
    ball: Ball,
    loss: str = "cross_entropy",
    num_levels: int | None = None,
) -> Adversarial:
    """One step to the edge of the ball along the steepest ascent of the loss.

    Raises: ValueError for an unknown loss. Source: arXiv:1412.6572, Section 4.
    """
    loss_fn = choose("loss", loss, ATTACK_LOSSES)
    gradient = jax.grad(lambda x: jnp.sum(loss_fn(logits_fn(x), label)))(x)
    attacked = ball.project(x + ball.eps * ball.steepest(gradient), x)
    return judged(logits_fn, x, label, attacked, ball=ball, num_levels=num_levels)


def pgd(
    rng: Rng,
    logits_fn: LogitsFn,
    x: Float[Array, "b *d"],
    label: Int[Array, "b"],
    *,
    ball: Ball,
    loss: str = "cross_entropy",
    num_steps: int = 40,
    num_restarts: int = 5,
    step_size: float | None = None,
    num_levels: int | None = None,
) -> Adversarial:
    """Projected gradient ascent from random points of the ball; keeps the largest margin.

    All iterates of all restarts compete. `step_size` is in the norm of the ball, by default
    2.5 eps / num_steps. Costs num_restarts (num_steps + 1) gradients.
    Raises: ValueError for an unknown loss, or no steps or restarts. Source: arXiv:1706.06083.
    """
    loss_fn = choose("loss", loss, ATTACK_LOSSES)

    def climbed(x: Array) -> Climbed:
        logits = logits_fn(x)
        distance = margin(logits, label)
        return Climbed(loss_fn(logits, label), distance > 0, distance)

    attacked = ascend(
        rng,
        climbed,
        x,
        ball=ball,
        num_steps=num_steps,
        num_restarts=num_restarts,
        step_size=step_size,
    )
    return judged(logits_fn, x, label, attacked.x, ball=ball, num_levels=num_levels)


def ascend(
    rng: Rng,
    climb_fn: ClimbFn,
    x: Float[Array, "b *d"],
    *,
    ball: Ball,
    num_steps: int,
    num_restarts: int,
    step_size: float | None = None,
) -> Best:
    """The best iterate by row of projected gradient ascents on the objective; see `pgd`."""
    if num_steps < 1 or num_restarts < 1:
        raise ValueError(
            "projected ascent needs num_steps >= 1 and num_restarts >= 1; got "
            f"num_steps={num_steps}, num_restarts={num_restarts}."
        )
    if step_size is None:
        step_size = 2.5 * ball.eps / num_steps
    if not 0 <= step_size < math.inf:
        raise ValueError(f"projected ascent needs a finite step_size >= 0; got {step_size}.")

    def summed(x: Array) -> tuple[Array, Climbed]:
        climbed = climb_fn(x)
        return jnp.sum(climbed.value), climbed

    def step(carry: tuple[Array, Best], _: None) -> tuple[tuple[Array, Best], None]:
        iterate, best = carry
        gradient, climbed = jax.grad(summed, has_aux=True)(iterate)
        best = better(best, Best(iterate, climbed.wrong, climbed.rank))
        iterate = ball.project(iterate + step_size * ball.steepest(gradient), x)
        return (iterate, best), None

    def restart(best: Best, number: Array) -> tuple[Best, None]:
        start = ball.draw(fold_in(rng, number), x)
        (last, best), _ = jax.lax.scan(step, (start, best), length=num_steps)
        climbed = climb_fn(last)
        return better(best, Best(last, climbed.wrong, climbed.rank)), None

    return jax.lax.scan(restart, Best.none(x), jnp.arange(num_restarts))[0]


def better(old: Best, new: Best) -> Best:
    """The better iterate of each row; the old one in a tie."""
    wins = jnp.where(old.wrong == new.wrong, new.rank > old.rank, new.wrong)
    pick = lambda a, b: jnp.where(expand(wins, a), a, b)
    return Best(*(pick(a, b) for a, b in zip(new, old, strict=True)))
