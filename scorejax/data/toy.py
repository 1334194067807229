# SPDX-License-Identifier: Apache-2.0
"""Distributions on the plane whose densities are known exactly, before and after noise is added.

Each is a mixture of equal weights: of points, of circles or of squares, convolved with Gaussian
noise. Such a mixture stays one under x -> scale x + std z, so that the truth at every level of a
diffusion is exact as well. Coordinates lie in about [-1, 1] and have a standard deviation of 0.5.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, log_ndtr
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.choices import choose
from scorejax.data.vectors import VectorView
from scorejax.numerics import norm_except_batch


class PlaneDistribution(Protocol):
    """A distribution of points (2,) with an exact density."""

    def sample(self, rng: PRNGKeyArray, num: int) -> Float[Array, "n 2"]:
        """Independent draws."""
        ...

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, "b"]:
        """Log-density in nats, in the precision of x."""
        ...

    def noised(self, scale: float, std: float) -> "PlaneDistribution":
        """The distribution of scale x + std z, with z ~ N(0, I).

        Raises: ValueError unless scale > 0 and std >= 0.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyPoints:
    """A uniform choice among `centres` (k, 2), plus N(0, std^2 I)."""

    centres: np.ndarray
    std: float

    def sample(self, rng: PRNGKeyArray, num: int) -> Float[Array, "n 2"]:
        which_rng, noise_rng = jax.random.split(rng)
        centre = jnp.asarray(self.centres, float)[_choose(which_rng, num, self.centres)]
        return centre + self.std * jax.random.normal(noise_rng, (num, 2))

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, "b"]:
        # Not by a matrix product: |x|^2 - 2 x.c + |c|^2 cancels.
        away = x[:, None] - jnp.asarray(self.centres, x.dtype)[None]
        exponents = -jnp.sum(away**2, axis=-1) / (2 * self.std**2)
        return _log_mean_exp(exponents) - math.log(2 * math.pi * self.std**2)

    def noised(self, scale: float, std: float) -> "NoisyPoints":
        return NoisyPoints(scale * self.centres, _noisier(self.std, scale, std))


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyCircles:
    """A uniform choice among circles of `radii` (k,) around 0, uniform there, plus N(0, std^2 I).

    The density of a circle of radius r at distance s from 0 is, with the Bessel function I_0,
    exp(-(s^2 + r^2) / (2 std^2)) I_0(s r / std^2) / (2 pi std^2).
    """

    radii: np.ndarray
    std: float

    def sample(self, rng: PRNGKeyArray, num: int) -> Float[Array, "n 2"]:
        which_rng, angle_rng, noise_rng = jax.random.split(rng, 3)
        radius = jnp.asarray(self.radii, float)[_choose(which_rng, num, self.radii)]
        angle = jax.random.uniform(angle_rng, (num,), maxval=2 * math.pi)
        circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return radius[:, None] * circle + self.std * jax.random.normal(noise_rng, (num, 2))

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, "b"]:
        distance, radii = norm_except_batch(x)[:, None], jnp.asarray(self.radii, x.dtype)[None]
        variance = self.std**2
        # i0e is exp(-|z|) I_0(z), which completes the square.
        bessel = jnp.log(i0e(distance * radii / variance))
        exponents = -((distance - radii) ** 2) / (2 * variance) + bessel
        return _log_mean_exp(exponents) - math.log(2 * math.pi * variance)

    def noised(self, scale: float, std: float) -> "NoisyCircles":
        return NoisyCircles(scale * self.radii, _noisier(self.std, scale, std))


@dataclasses.dataclass(frozen=True, eq=False)
class NoisySquares:
    """A uniform choice among squares of one `side` around `centres` (k, 2), plus N(0, std^2 I)."""

    centres: np.ndarray
    side: float
    std: float

    def sample(self, rng: PRNGKeyArray, num: int) -> Float[Array, "n 2"]:
        which_rng, place_rng, noise_rng = jax.random.split(rng, 3)
        centre = jnp.asarray(self.centres, float)[_choose(which_rng, num, self.centres)]
        place = self.side * (jax.random.uniform(place_rng, (num, 2)) - 0.5)
        return centre + place + self.std * jax.random.normal(noise_rng, (num, 2))

    def log_prob(self, x: Float[Array, "b 2"]) -> Float[Array, "b"]:
        away = jnp.abs(x[:, None] - jnp.asarray(self.centres, x.dtype)[None])
        # Measured from the centre both ends lie in the lower tail, or far apart: no cancellation.
        upper = log_ndtr((self.side / 2 - away) / self.std)
        lower = log_ndtr((-self.side / 2 - away) / self.std)
        exponents = jnp.sum(upper + jnp.log(-jnp.expm1(lower - upper)), axis=-1)
        return _log_mean_exp(exponents) - 2 * math.log(self.side)

    def noised(self, scale: float, std: float) -> "NoisySquares":
        noise = _noisier(self.std, scale, std)
        return NoisySquares(scale * self.centres, scale * self.side, noise)


def rings() -> NoisyCircles:
    """Four rings of equal mass and noise 0.03."""
    return NoisyCircles(np.array([0.25, 0.5, 0.75, 1.0]), 0.03)


def spirals(num_per_arm: int = 128) -> NoisyPoints:
    """Two arms of one and a half turns: Gaussians of noise 0.03, a little farther apart than that.

    As points of equal mass the arms have the density of the customary spirals, with the angle
    3 pi sqrt(u) for uniform u.
    """
    radius = np.sqrt((np.arange(num_per_arm) + 0.5) / num_per_arm)
    arm = _polar(radius, 3 * np.pi * radius)
    return NoisyPoints(np.concatenate([arm, -arm]), 0.03)


def checkerboard() -> NoisySquares:
    """Every second field of a 4 x 4 board, with edges blurred by 0.02."""
    middles = np.array([-0.75, -0.25, 0.25, 0.75])
    centres = [(x, y) for i, y in enumerate(middles) for x in middles[i % 2 :: 2]]
    return NoisySquares(np.array(centres), 0.5, 0.02)


def eight_gaussians() -> NoisyPoints:
    """Gaussians of noise 0.09 at the corners of an octagon."""
    return NoisyPoints(_polar(0.7, np.arange(8) * np.pi / 4), 0.09)


def moons(num_per_moon: int = 64) -> NoisyPoints:
    """Two interleaved half-circles: Gaussians of noise 0.05, closer together than that."""
    arc = _polar(1.0, (np.arange(num_per_moon) + 0.5) / num_per_moon * np.pi)
    both = np.concatenate([arc, np.array([1.0, 0.5]) - arc])
    return NoisyPoints((both - np.array([0.5, 0.25])) / 1.5, 0.05)


TOYS: dict[str, Callable[[], PlaneDistribution]] = {
    "rings": rings,
    "spirals": spirals,
    "checkerboard": checkerboard,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
}


def toy_distribution(name: str) -> PlaneDistribution:
    """The distribution of a name of `TOYS`. Raises: ValueError if the name is unknown."""
    return choose("toy", name, TOYS)()


def toy_view(name: str, *, num_train: int, num_test: int, seed: int = 0) -> VectorView:
    """Independent draws of a toy as training and test rows.

    Raises: ValueError if the name is unknown or a number of rows is below 1.
    """
    distribution = toy_distribution(name)
    for split, num in (("num_train", num_train), ("num_test", num_test)):
        if num < 1:
            raise ValueError(f"{split} needs to be at least 1; got {num}")
    train_rng, test_rng = jax.random.split(jax.random.key(seed))
    train = distribution.sample(train_rng, num_train)
    return VectorView(np.asarray(train), np.asarray(distribution.sample(test_rng, num_test)))


def _choose(rng: PRNGKeyArray, num: int, components: np.ndarray) -> Array:
    return jax.random.randint(rng, (num,), 0, len(components))


def _log_mean_exp(exponents: Float[Array, "b k"]) -> Float[Array, "b"]:
    return jax.nn.logsumexp(exponents, axis=-1) - math.log(exponents.shape[-1])


def _noisier(own: float, scale: float, std: float) -> float:
    if not (0 < scale < math.inf and 0 <= std < math.inf):
        raise ValueError(f"noised needs scale > 0 and std >= 0; got scale={scale}, std={std}")
    return math.hypot(scale * own, std)


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> Float[np.ndarray, "n 2"]:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
