# SPDX-License-Identifier: Apache-2.0
"""States and actions in standard deviations of the demonstrations, from their means.

Networks and penalties on gradients see these units: in those of the environment a column of small
deviation would decide a penalty alone.
"""

from typing import NamedTuple, Self

import jax.numpy as jnp

from scorejax.data.demonstrations import Demonstrations
from scorejax.objectives.actor_critic import Policy
from scorejax.random import Rng
from scorejax.typing import Array, Batch


class Units(NamedTuple):
    """Means and standard deviations (o + a,) of pairs of states and actions."""

    mean: Array
    std: Array

    @classmethod
    def of(cls, demonstrations: Demonstrations) -> Self:
        return cls(*(jnp.asarray(values, jnp.float32) for values in demonstrations.moments()))

    def pairs(self, rows: Array) -> Array:
        """States and actions side by side, (b, o + a)."""
        return (rows - self.mean[None]) / self.std[None]

    def states(self, obs: Array) -> Array:
        """States (b, o)."""
        size = obs.shape[1]
        return (obs - self.mean[None, :size]) / self.std[None, :size]

    def actions(self, action: Array) -> Array:
        """Actions (b, a)."""
        size = action.shape[1]
        return (action - self.mean[None, -size:]) / self.std[None, -size:]

    def raw_states(self, white: Array) -> Array:
        """States (b, o) in the environment's units."""
        size = white.shape[1]
        return white * self.std[None, :size] + self.mean[None, :size]

    def batch(self, batch: Batch) -> Batch:
        """A batch whose fields "...obs" and "...action" are in these units."""
        white = dict(batch)
        for name, values in batch.items():
            if name.endswith("obs"):
                white[name] = self.states(values)
            elif name.endswith("action"):
                white[name] = self.actions(values)
        return white


class WhitePolicy(NamedTuple):
    """A policy whose actions are in these units; log-densities are not changed."""

    policy: Policy
    units: Units

    def sample_and_log_prob(self, rng: Rng) -> tuple[Array, Array]:
        action, log_prob = self.policy.sample_and_log_prob(rng)
        return self.units.actions(action), log_prob
