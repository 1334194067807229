# SPDX-License-Identifier: Apache-2.0
"""DeepFool: steps to the nearest boundary of the linearised classifier.

Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, Algorithm 2 and Section 3.3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.attacks.ball import NORMS, Adversarial, LogitsFn, judged
from scorejax.choices import require, require_known
from scorejax.numerics import expand


class Walk(NamedTuple):
    """The state of the walk: the sum of all steps, the inputs there, and which rows are wrong."""

    total: Float[Array, "b *d"]
    x: Float[Array, "b *d"]
    wrong: Bool[Array, "b"]
    number: Int[Array, ""]


def deepfool(
    logits_fn: LogitsFn,
    x: Float[Array, "b *d"],
    label: Int[Array, "b"],
    *,
    norm: str = "2",
    overshoot: float = 0.02,
    num_steps: int = 50,
    num_levels: int | None = None,
) -> Adversarial:
    """x plus 1 + overshoot times the steps to the nearest boundaries, in the norm "2" or "inf".

    A row stops as soon as it is wrong; one that is wrong at the start stays as it is. Costs up to
    num_steps Jacobians of the k logits, each of the memory of k inputs.
    Raises: ValueError for another norm, overshoot <= 0, or no steps.
    """
    require_known("norm", norm, NORMS)
    require({"overshoot": overshoot}, ("overshoot",), lambda v: v > 0, "to be positive")
    require({"num_steps": num_steps}, ("num_steps",), lambda v: v >= 1, "to be at least 1")

    def go_on(walk: Walk) -> Array:
        return (walk.number < num_steps) & ~jnp.all(walk.wrong)

    def advance(walk: Walk) -> Walk:
        step = _nearest_boundary(logits_fn, walk.x, label, norm)
        total = walk.total + jnp.where(expand(walk.wrong, step), 0, step)
        moved = jnp.clip(x + (1 + overshoot) * total, 0, 1)
        return Walk(total, moved, is_wrong(moved), walk.number + 1)

    def is_wrong(x: Array) -> Array:
        return jnp.argmax(logits_fn(x), axis=1) != label

    start = Walk(jnp.zeros_like(x), x, is_wrong(x), jnp.zeros((), jnp.int32))
    walk = jax.lax.while_loop(go_on, advance, start)
    return judged(logits_fn, x, label, walk.x, num_levels=num_levels)


def _nearest_boundary(
    logits_fn: LogitsFn, x: Float[Array, "b *d"], label: Int[Array, "b"], norm: str
) -> Float[Array, "b *d"]:
    """The step from x to the nearest boundary between its label and another class, linearised."""
    logits, pull = jax.vjp(logits_fn, x)
    num_classes, rows = logits.shape[1], jnp.arange(len(x))
    pulled = jax.vmap(lambda j: pull(jnp.zeros_like(logits).at[:, j].set(1))[0])
    gradients = pulled(jnp.arange(num_classes)).reshape(num_classes, len(x), -1)
    slopes = gradients - gradients[label, rows][None]
    gaps = jnp.abs(logits - logits[rows, label][:, None])
    dual = jnp.sum(slopes**2 if norm == "2" else jnp.abs(slopes), axis=-1).T
    size = jnp.sqrt(dual) if norm == "2" else dual
    usable = (jnp.arange(num_classes)[None] != label[:, None]) & (size > 0)
    distances = jnp.where(usable, gaps / jnp.where(usable, size, 1), jnp.inf)
    nearest = jnp.argmin(distances, axis=1)
    distance = jnp.take_along_axis(distances, nearest[:, None], axis=1)
    slope = slopes[nearest, rows]
    along = slope / jnp.maximum(size[rows, nearest], jnp.finfo(x.dtype).tiny)[:, None]
    along = along if norm == "2" else jnp.sign(slope)
    # Where all gradients vanish there is no boundary to go to.
    step = jnp.where(jnp.isfinite(distance), distance * along, 0)
    return step.reshape(x.shape)
