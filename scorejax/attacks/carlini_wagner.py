# SPDX-License-Identifier: Apache-2.0
"""The attack of Carlini and Wagner: the smallest 2-norm that Adam finds, by bisected weights.

Source: Carlini & Wagner 2017, arXiv:1608.04644, Section VI-A.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from scorejax.attacks.ball import Adversarial, LogitsFn, judged
from scorejax.attacks.losses import margin
from scorejax.choices import require
from scorejax.numerics import expand, sum_except_batch

EDGE = 1e-6
"""Distance from 0 and 1 at which inputs enter arctanh, relative to 1/2."""


class Smallest(NamedTuple):
    """The nearest wrong inputs so far, and their squared distances; infinite where none is."""

    x: Float[Array, "b *d"]
    square: Float[Array, "b"]


class Bracket(NamedTuple):
    """The weight of the margin for each row, and the bounds between which it is bisected."""

    weight: Float[Array, "b"]
    lower: Float[Array, "b"]
    upper: Float[Array, "b"]


def carlini_wagner(
    logits_fn: LogitsFn,
    x: Float[Array, "b *d"],
    label: Int[Array, "b"],
    *,
    confidence: float = 0.0,
    num_steps: int = 1000,
    num_bisections: int = 9,
    initial_weight: float = 1e-3,
    learning_rate: float = 0.01,
    num_levels: int | None = None,
) -> Adversarial:
    """Minimises |x' - x|^2 + c max(-margin(x'), -confidence) over x' = (tanh w + 1) / 2.

    c is bisected for each row, and grows tenfold as long as no wrong input is found. Returns the
    nearest wrong input of all steps whose margin is at least `confidence`, or x without one. Costs
    num_steps * num_bisections gradients.
    Raises: ValueError for a number that is not positive, or a negative confidence.
    """
    positive = {"initial_weight": initial_weight, "learning_rate": learning_rate}
    counts = {"num_steps": num_steps, "num_bisections": num_bisections}
    require(positive, positive, lambda v: v > 0, "to be positive")
    require(counts, counts, lambda v: v >= 1, "to be at least 1")
    require({"confidence": confidence}, ("confidence",), lambda v: v >= 0, "to be at least 0")
    adam = optax.adam(learning_rate)
    start = jnp.arctanh((1 - EDGE) * (2 * x - 1))

    def loss(w: Array, weight: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        y = (jnp.tanh(w) + 1) / 2
        distance, square = margin(logits_fn(y), label), sum_except_batch((y - x) ** 2)
        return jnp.sum(square + weight * jnp.maximum(-distance, -confidence)), (y, distance, square)

    def minimise(carry: tuple[Smallest, Bracket], _: None) -> tuple[tuple[Smallest, Bracket], None]:
        smallest, bracket = carry

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            w, moments, smallest, found = carry
            gradient, (y, distance, square) = jax.grad(loss, has_aux=True)(w, bracket.weight)
            wrong = (distance > 0) & (distance >= confidence)
            nearer = wrong & (square < smallest.square)
            smallest = Smallest(
                jnp.where(expand(nearer, y), y, smallest.x),
                jnp.where(nearer, square, smallest.square),
            )
            update, moments = adam.update(gradient, moments)
            return (w + update, moments, smallest, found | wrong), None

        carry = (start, adam.init(start), smallest, jnp.zeros(len(x), bool))
        (_, _, smallest, found), _ = jax.lax.scan(step, carry, length=num_steps)
        return (smallest, _bisected(bracket, found)), None

    nothing = jnp.full(len(x), jnp.inf, x.dtype)
    bracket = Bracket(jnp.full_like(nothing, initial_weight), jnp.zeros_like(nothing), nothing)
    carry = (Smallest(x, nothing), bracket)
    (smallest, _), _ = jax.lax.scan(minimise, carry, length=num_bisections)
    return judged(logits_fn, x, label, smallest.x, num_levels=num_levels)


def _bisected(bracket: Bracket, found: Array) -> Bracket:
    lower = jnp.where(found, bracket.lower, bracket.weight)
    upper = jnp.where(found, bracket.weight, bracket.upper)
    weight = jnp.where(jnp.isinf(upper), 10 * bracket.weight, (lower + upper) / 2)
    return Bracket(weight, lower, upper)
