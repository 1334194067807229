# SPDX-License-Identifier: Apache-2.0
"""The interface of environments, one by one and in parallel.

`terminated` says that the episode ended in a state without a future; a time limit only truncates
it, and the value of the state it stops in is what it would be without the limit. `next_obs` is
always the observation that the action led to, never the first of the next episode.
Actions outside of the box are clipped to it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from scorejax.choices import require
from scorejax.random import Rng
from scorejax.typing import PyTree

Numbers: TypeAlias = float | int | Sequence[Any] | np.ndarray
"""A number, numbers in lists, or an array of the host."""


class Transitioned(NamedTuple):
    """Where an action led: the new state, its observation, the reward, and whether it ended."""

    state: PyTree
    obs: Float[Array, "o"]
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]


class Env(NamedTuple):
    """One environment: pure functions of keys, states and actions. It does not count its steps."""

    name: str
    reset: Callable[[PRNGKeyArray], tuple[PyTree, Array]]
    """rng -> (state, obs (o,))."""
    step: Callable[[PRNGKeyArray, PyTree, Array], Transitioned]
    """(rng, state, action (a,)) -> Transitioned."""
    horizon: int
    """The time limit of an episode, in steps."""
    observation_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    """The box of actions, (a,) each."""

    @property
    def action_dim(self) -> int:
        return len(self.action_low)


class Stepped(NamedTuple):
    """A transition of each of e environments, and the observations to act on next.

    `obs` differs from `next_obs` where an episode ended and another began in the same step.
    At most one of `terminated` and `truncated` holds.
    """

    state: PyTree
    obs: Float[Array, "e o"]
    next_obs: Float[Array, "e o"]
    reward: Float[Array, "e"]
    terminated: Bool[Array, "e"]
    truncated: Bool[Array, "e"]
    start_obs: Float[Array, "e o"] | None = None
    """The observations that the actions were taken in; None if they are those of the step before.

    They are others where a simulator that nobody can save was lost, and began new episodes."""


class VectorEnv(NamedTuple):
    """Environments that step together, each beginning a new episode when one ends.

    The functions work on any of the rows, such as one device's share. `rng` is one key or a key for
    each row.
    """

    name: str
    num_envs: int
    reset: Callable[[Rng], tuple[PyTree, Array]]
    """rng -> (state, obs (e, o)) of all num_envs rows."""
    step: Callable[[Rng, PyTree, Array], Stepped]
    """(rng, state, action (e, a)) -> Stepped."""
    horizon: int
    observation_dim: int
    action_low: np.ndarray
    action_high: np.ndarray

    @property
    def action_dim(self) -> int:
        return len(self.action_low)


def clip_to_box(action: Float[Array, "*e a"], env: Env | VectorEnv) -> Float[Array, "*e a"]:
    """The nearest action of the box."""
    low, high = (np.broadcast_to(end, action.shape) for end in (env.action_low, env.action_high))
    return jnp.clip(action, jnp.asarray(low), jnp.asarray(high))


def require_count(**counts: Any) -> None:
    """Raises ValueError, naming it, for a count that is not a whole number of at least 1."""
    is_count = lambda value: isinstance(value, int | np.integer) and value >= 1
    require(counts, counts, is_count, "a whole number of at least 1")


def symmetric_box(limit: Numbers, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The box from -limit to limit, (dim,) each.

    Raises: ValueError unless the limits are positive, finite, and one or `dim` of them.
    """
    limits = np.asarray(limit, float)
    if limits.shape not in [(), (1,), (dim,)] or not np.all((limits > 0) & np.isfinite(limits)):
        raise ValueError(f"max_action needs 1 or {dim} positive, finite numbers; got {limit!r}")
    high = np.broadcast_to(limits, (dim,))
    return -high, high
