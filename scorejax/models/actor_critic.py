# SPDX-License-Identifier: Apache-2.0
"""Networks of actor-critic methods: a policy in a box of actions, and critics of state and action.

Source: Haarnoja et al. 2018, arXiv:1812.05905, Section 5 and Appendix C; arXiv:1802.09477 for two
critics.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import dense, softplus
from scorejax.random import Rng, normal


class TanhGaussian(NamedTuple):
    """The law of low + (high - low) (1 + tanh u) / 2 for u ~ N(mean, diag(exp(log_std))^2).

    Actions are in units of the environment, log-densities in nats of these units.
    """

    mean: Float[Array, "b a"]
    log_std: Float[Array, "b a"]
    low: Float[Array, "a"]
    high: Float[Array, "a"]

    def sample_and_log_prob(self, rng: Rng) -> tuple[Float[Array, "b a"], Float[Array, "b"]]:
        """Actions, differentiable in mean and log_std, and their log-densities.

        Each row is drawn from its own key if there are several.
        """
        noise = normal(rng, self.mean.shape, self.mean.dtype)
        u = self.mean + jnp.exp(self.log_std) * noise
        return self._action(u), self._log_prob(u, noise)

    def log_prob(self, action: Float[Array, "b a"], *, edge: float = 1e-6) -> Float[Array, "b"]:
        """Log-density of each action.

        The density is infinite or zero at the faces of the box. Actions closer to a face than
        `edge` half widths, or beyond it, count as lying there.
        """
        centre, half_width = self._box()
        unit = jnp.clip((action - centre[None]) / half_width[None], -1 + edge, 1 - edge)
        u = jnp.arctanh(unit)
        return self._log_prob(u, (u - self.mean) * jnp.exp(-self.log_std))

    def mode(self) -> Float[Array, "b a"]:
        """The action of u = mean, which evaluations of a deterministic policy take.

        It is the median of each dimension; where the density is largest is another point.
        """
        return self._action(self.mean)

    def _box(self) -> tuple[Float[Array, "a"], Float[Array, "a"]]:
        return (self.high + self.low) / 2, (self.high - self.low) / 2

    def _action(self, u: Float[Array, "b a"]) -> Float[Array, "b a"]:
        centre, half_width = self._box()
        return centre[None] + half_width[None] * jnp.tanh(u)

    def _log_prob(self, u: Float[Array, "b a"], noise: Float[Array, "b a"]) -> Float[Array, "b"]:
        gaussian = -(noise**2) / 2 - self.log_std - math.log(2 * math.pi) / 2
        # log(1 - tanh(u)^2) without the cancellation: finite for |u| of any size.
        log_slope = 2 * (math.log(2) - u - softplus(-2 * u))
        _, half_width = self._box()
        return jnp.sum(gaussian - log_slope, axis=1) - jnp.sum(jnp.log(half_width))


class Perceptron(nn.Module):
    """Layers of `hidden` ReLU units and a linear output layer."""

    features: int
    hidden: Sequence[int] = (256, 256)
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        for i, width in enumerate(self.hidden):
            x = nn.relu(dense(width, name=f"hidden_{i}")(x))
        return dense(self.features, name="out", init_scale=self.init_scale)(x)


class PairPerceptron(nn.Module):
    """(obs (b, o), action (b, a)) -> one number a row (b,), such as a discriminator's logit."""

    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, obs: Float[Array, "b o"], action: Float[Array, "b a"]) -> Float[Array, "b"]:
        pairs = jnp.concatenate([obs, action], axis=1)
        return Perceptron(1, self.hidden, name="perceptron")(pairs)[:, 0]


class Actor(nn.Module):
    """obs (b, o) -> the policy's law of actions in the box [low, high], one `TanhGaussian` a row.

    Initially u is close to N(0, 1) whatever the observation. `log_std_bounds` clip log_std; a lower
    bound of -5 in place of -20 makes training calmer.
    Raises: ValueError unless low < high, finite and of equal lengths, and the bounds are in order.
    """

    low: Sequence[float]
    high: Sequence[float]
    hidden: Sequence[int] = (256, 256)
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_box(self.low, self.high)
        if not self.log_std_bounds[0] < self.log_std_bounds[1]:
            raise ValueError(f"log_std_bounds needs lower < upper; got {self.log_std_bounds}")

    @nn.compact
    def __call__(self, obs: Float[Array, "b o"]) -> TanhGaussian:
        out = Perceptron(2 * len(self.low), self.hidden, init_scale=1e-4, name="perceptron")(obs)
        mean, log_std = jnp.split(out, 2, axis=1)
        low, high = (jnp.asarray(bound, mean.dtype) for bound in (self.low, self.high))
        return TanhGaussian(mean, jnp.clip(log_std, *self.log_std_bounds), low, high)


class TwinCritic(nn.Module):
    """(obs (b, o), action (b, a)) -> (b, 2): two values, of perceptrons that share nothing.

    The perceptrons see actions in units of the box's half width, from -1 to 1.
    Raises: ValueError unless low < high, finite and of equal lengths.
    """

    low: Sequence[float]
    high: Sequence[float]
    hidden: Sequence[int] = (256, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_box(self.low, self.high)

    @nn.compact
    def __call__(self, obs: Float[Array, "b o"], action: Float[Array, "b a"]) -> Array:
        low, high = (jnp.asarray(bound, action.dtype) for bound in (self.low, self.high))
        unit = (2 * action - (high + low)[None]) / (high - low)[None]
        x = jnp.concatenate([obs, unit], axis=1)
        values = [Perceptron(1, self.hidden, name=f"critic_{i}")(x) for i in range(2)]
        return jnp.concatenate(values, axis=1)


class PairCritic(nn.Module):
    """(next_state (b, d), state (b, d)) -> f (b,), smoothly bounded above by `ceiling` nats.

    A learned critic of `objectives.occupancy_entropy`, whose bounds average e^f.
    """

    hidden: Sequence[int] = (256, 256)
    ceiling: float = 10.0

    @nn.compact
    def __call__(
        self, next_state: Float[Array, "b d"], state: Float[Array, "b d"]
    ) -> Float[Array, "b"]:
        x = jnp.concatenate([next_state, state], axis=1)
        f = Perceptron(1, self.hidden, name="perceptron")(x)[:, 0]
        return self.ceiling - softplus(self.ceiling - f)


def require_box(low: Sequence[float], high: Sequence[float]) -> None:
    """Raises ValueError unless low < high, finite and of equal lengths."""
    if len(low) != len(high) or not len(low):
        raise ValueError(f"a box of actions needs as many low as high; got {len(low)}, {len(high)}")
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        if not (math.isfinite(a) and math.isfinite(b) and a < b):
            raise ValueError(f"a box of actions needs finite low < high; got {a}, {b} in {i}")
