# SPDX-License-Identifier: Apache-2.0
"""Balls of allowed perturbations around inputs in [0, 1], and what counts as a success."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scorejax.choices import require_known
from scorejax.numerics import expand, norm_except_batch
from scorejax.random import Rng, draw_rows, normal, split

LogitsFn = Callable[[Float[Array, "b *d"]], Float[Array, "b k"]]
"""A classifier with its parameters bound: inputs in [0, 1] -> logits."""

NORMS = ("inf", "2")
TOLERANCE = 1e-6
"""By this much a perturbation may exceed its ball, in rounding."""


@dataclasses.dataclass(frozen=True)
class Ball:
    """Perturbations of norm at most `eps`: the largest entry ("inf"), or Euclidean ("2").

    Raises: ValueError for another norm, or eps < 0.
    """

    norm: str = "inf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        require_known("norm", self.norm, NORMS)
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"a ball needs a finite eps >= 0; got {self.eps}.")

    def project(self, x: Float[Array, "b *d"], center: Float[Array, "b *d"]) -> Array:
        """The point of the ball around `center`, in [0, 1], that is nearest to x.

        For norm 2 it lies in both sets, but need not be the nearest such point.
        """
        if self.norm == "inf":
            lower = jnp.maximum(center - self.eps, 0)
            return jnp.clip(x, lower, jnp.minimum(center + self.eps, 1))
        delta = x - center
        size = norm_except_batch(delta)
        shrink = jnp.minimum(1, self.eps / jnp.where(size > 0, size, 1.0))
        return jnp.clip(center + expand(shrink, x) * delta, 0, 1)

    def steepest(self, gradient: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
        """The direction of norm 1 in which a linear function rises most; 0 where its slope is 0."""
        if self.norm == "inf":
            return jnp.sign(gradient)
        size = norm_except_batch(gradient)
        return gradient / expand(jnp.where(size > 0, size, 1.0), gradient)

    def draw(self, rng: Rng, center: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
        """A uniform draw from the ball around `center`, clipped to [0, 1]."""
        if self.norm == "inf":
            uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-1.0)
            return jnp.clip(center + self.eps * draw_rows(uniform, rng, center.shape), 0, 1)
        direction_rng, radius_rng = split(rng)
        direction = self.steepest(normal(direction_rng, center.shape))
        radius = draw_rows(jax.random.uniform, radius_rng, center.shape[:1])
        radius = self.eps * radius ** (1 / math.prod(center.shape[1:]))
        return jnp.clip(center + expand(radius, center) * direction, 0, 1)

    def contains(self, x: Float[Array, "b *d"], center: Float[Array, "b *d"]) -> Bool[Array, "b"]:
        """Whether x is in the ball around `center`, up to TOLERANCE."""
        return perturbation_norm(x, center, self.norm) <= self.eps + TOLERANCE


class Adversarial(NamedTuple):
    """Attacked inputs in [0, 1], and whether the attack on each succeeded."""

    x: Float[Array, "b *d"]
    success: Bool[Array, "b"]
    """Classified as its label before the attack and not after it, and inside the ball if any."""


def perturbation_norm(
    x: Float[Array, "b *d"], clean: Float[Array, "b *d"], norm: str
) -> Float[Array, "b"]:
    """Size of x - clean by row in the norm "inf" or "2"."""
    delta = x - clean
    if norm == "2":
        return norm_except_batch(delta)
    return jnp.max(jnp.abs(delta.reshape(len(delta), -1)), axis=1)


def judged(
    logits_fn: LogitsFn,
    clean: Float[Array, "b *d"],
    label: Int[Array, "b"],
    attacked: Float[Array, "b *d"],
    *,
    ball: Ball | None = None,
    num_levels: int | None = None,
) -> Adversarial:
    """The attacked inputs, rounded to `num_levels` grey levels if set, and their success.

    256 levels are those of 8-bit images. In a ball, values are rounded towards the clean ones, so
    that those stay in it whose clean values are levels. Raises: ValueError for fewer than 2 levels.
    """
    if num_levels is not None:
        attacked = _rounded(attacked, clean, num_levels, inwards=ball is not None)
    was_right = jnp.argmax(logits_fn(clean), axis=1) == label
    is_wrong = jnp.argmax(logits_fn(attacked), axis=1) != label
    success = was_right & is_wrong
    return Adversarial(attacked, success & ball.contains(attacked, clean) if ball else success)


def _rounded(x: Array, clean: Array, num_levels: int, *, inwards: bool) -> Array:
    if num_levels < 2:
        raise ValueError(f"rounding needs num_levels >= 2; got {num_levels}.")
    top = num_levels - 1
    if not inwards:
        return jnp.round(x * top) / top
    # Level k / top times top may be a rounding error away from k.
    small = 1e-3
    towards = jnp.where(x > clean, jnp.floor(x * top + small), jnp.ceil(x * top - small))
    return jnp.where(x == clean, x, towards / top)


def equal_norm_noise(
    rng: Rng, x: Float[Array, "b *d"], attacked: Float[Array, "b *d"]
) -> Float[Array, "b *d"]:
    """x plus Gaussian noise, clipped to [0, 1], as far from x in 2-norm as `attacked` is.

    The control of an attack: a detector that finds these as well has found noise. Falls short of
    the norm only where no noise of these signs reaches it inside [0, 1].
    Source: Lee et al. 2018, arXiv:1807.03888, Section 3.1.
    """
    target = perturbation_norm(attacked, x, "2")
    noise = normal(rng, x.shape, x.dtype)
    at = lambda scale: jnp.clip(x + expand(scale, x) * noise, 0, 1)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        lower, upper = bounds
        middle = (lower + upper) / 2
        short = perturbation_norm(at(middle), x, "2") < target
        return jnp.where(short, middle, lower), jnp.where(short, upper, middle)

    # Clipping only shortens the noise, so a scale of target / |noise| is the least possible one.
    least = target / norm_except_batch(noise)
    most = jnp.where(target > 0, 64 * least, 0.0)
    return at(jax.lax.fori_loop(0, 30, halve, (least, most))[0])
