# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: transitions of an expert, checked, with the episode that each belongs to.

Every transition keeps its own next observation, so that any subset of them is complete. A
transition is terminal if the environment ended there; a time limit is no such end.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from scorejax.choices import require
from scorejax.data.digest import digest

MIN_STD = 1e-3
"""Smallest deviation of a column, in its own units, by which it is divided."""
OUTSIDE = 1e-5
"""Share of the box's width by which recorded actions may lie outside, for rounding."""


@dataclasses.dataclass(frozen=True, eq=False)
class Demonstrations:
    """n transitions of e episodes, in the order of time, those of one episode together.

    `episode` numbers the episode of each transition and does not fall. `dt` is the time of a step.
    `thinned` is None, or the (e,) returns of the episodes before transitions were left out, and
    `ended` then says which of them the environment ended. `name` says where they are from, in
    errors.

    Raises: ValueError, one line that begins with the name, unless the arrays are finite and fit
    together and only last transitions of episodes are terminal.
    """

    observations: Float[np.ndarray, "n o"]
    actions: Float[np.ndarray, "n a"]
    next_observations: Float[np.ndarray, "n o"]
    terminated: Bool[np.ndarray, "n"]
    episode: Int[np.ndarray, "n"]
    rewards: Float[np.ndarray, "n"] | None = None
    dt: float | None = None
    name: str = "demonstrations"
    thinned: Float[np.ndarray, "e"] | None = None
    ended: Bool[np.ndarray, "e"] | None = None

    def __post_init__(self) -> None:
        for field in ("observations", "actions", "next_observations"):
            self._set(field, self._numbers(field, ndim=2))
        num = len(self.observations)
        if not num or not self.observations.shape[1] or not self.actions.shape[1]:
            self._refuse(f"needs a transition; got observations {self.observations.shape}")
        if self.next_observations.shape != self.observations.shape:
            self._refuse(
                f"needs a next observation for each; got {self.observations.shape} and "
                f"{self.next_observations.shape}"
            )
        if self.rewards is not None:
            self._set("rewards", self._numbers("rewards", ndim=1))
        for field in ("terminated", "episode", "actions", "rewards"):
            values = getattr(self, field)
            if values is not None and np.shape(values)[:1] != (num,):
                self._refuse(f"has {num} observations, and {field} of shape {np.shape(values)}")
        self._check_episodes()
        if self.dt is not None and not 0 < self.dt < math.inf:
            self._refuse(f"needs a positive dt; got {self.dt}")

    def _check_episodes(self) -> None:
        terminated, episode = np.asarray(self.terminated), np.asarray(self.episode)
        if terminated.dtype != bool and not np.isin(terminated, (0, 1)).all():
            self._refuse("needs terminated to be true or false")
        self._set("terminated", terminated.astype(bool))
        if not np.issubdtype(episode.dtype, np.integer) or (np.diff(episode) < 0).any():
            self._refuse("needs whole episode numbers that do not fall, episode after episode")
        self._set("episode", np.unique(episode, return_inverse=True)[1].reshape(-1))
        early = np.flatnonzero(self.terminated[:-1] & (np.diff(self.episode) == 0))
        if len(early):
            self._refuse(
                f"goes on in episode {self.episode[early[0]]} after its terminal transition, row "
                f"{early[0]}"
            )
        for field in ("thinned", "ended"):
            values = getattr(self, field)
            if values is not None and np.shape(values) != (self.num_episodes,):
                needs = f"needs {field} for {self.num_episodes} episodes"
                self._refuse(f"{needs}; got shape {np.shape(values)}")

    def _numbers(self, field: str, *, ndim: int) -> Float[np.ndarray, "..."]:
        values = np.asarray(getattr(self, field))
        if values.ndim != ndim or values.dtype.kind not in "fiub":
            needs = "rows (n, d) of numbers" if ndim == 2 else "a number for each transition"
            self._refuse(f"needs {field} to be {needs}; got {values.dtype} {values.shape}")
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            self._refuse(
                f"needs finite numbers; {field}{bad[0].tolist()} is {values[tuple(bad[0])]}, one "
                f"of {len(bad)}"
            )
        return values if values.dtype.kind == "f" else values.astype(np.float32)

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _refuse(self, message: str) -> None:
        raise ValueError(f"{self.name} {message}")

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def num_episodes(self) -> int:
        return int(self.episode[-1]) + 1

    @property
    def observation_dim(self) -> int:
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        return self.actions.shape[1]

    @property
    def has_returns(self) -> bool:
        """Whether there are rewards, or the returns of thinned episodes."""
        return self.rewards is not None or self.thinned is not None

    @property
    def share_ended(self) -> float:
        """The share of whole episodes that the environment ended."""
        return float(np.mean(self._ended()))

    def _ended(self) -> Bool[np.ndarray, "e"]:
        if self.ended is not None:
            return np.asarray(self.ended, bool)
        return np.bincount(self.episode, weights=self.terminated) > 0

    def pairs(self) -> Float[np.ndarray, "n oa"]:
        """States and actions side by side, (n, o + a)."""
        return np.concatenate([self.observations, self.actions], axis=1)

    def digest(self) -> Int[np.ndarray, "32"]:
        """SHA-256 of the transitions, in single precision, and of their episodes: 32 bytes."""
        return digest((*self.transitions().values(), self.episode.astype(np.int32)))

    def pair_of_zeros(self) -> tuple[Float[np.ndarray, "1 o"], Float[np.ndarray, "1 a"]]:
        """An observation and an action of zeros, from which networks learn their shapes."""
        zeros = lambda dim: np.zeros((1, dim), np.float32)
        return zeros(self.observation_dim), zeros(self.action_dim)

    def moments(self) -> tuple[Float[np.ndarray, "oa"], Float[np.ndarray, "oa"]]:
        """Means and standard deviations of the columns of pairs, the latter at least `MIN_STD`."""
        pairs = self.pairs()
        return pairs.mean(axis=0), np.maximum(pairs.std(axis=0), MIN_STD)

    def returns(self) -> Float[np.ndarray, "e"]:
        """The sum of rewards of each whole episode, without discount.

        Raises: ValueError if there are no rewards.
        """
        if self.thinned is not None:
            return self.thinned
        if self.rewards is None:
            self._refuse("has no rewards, and so no returns")
        return np.bincount(self.episode, weights=self.rewards, minlength=self.num_episodes)

    def lengths(self) -> Int[np.ndarray, "e"]:
        """The number of transitions of each episode that are here."""
        return np.bincount(self.episode, minlength=self.num_episodes)

    def episodes(self) -> Iterator["Demonstrations"]:
        """Each episode by itself."""
        for i in range(self.num_episodes):
            yield self._rows(np.flatnonzero(self.episode == i))

    def transitions(self) -> dict[str, np.ndarray]:
        """The transitions as batches have them: obs, action and next_obs in float32, terminated."""
        arrays = {"obs": self.observations, "action": self.actions}
        arrays |= {"next_obs": self.next_observations}
        single = {name: values.astype(np.float32) for name, values in arrays.items()}
        return single | {"terminated": self.terminated}

    def held_out_rows(self) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "h"]]:
        """Rows to fit something to, and rows to judge it by, which are not their neighbours.

        Rows of one episode that follow each other are near copies: random rows would be judged by
        these. Held out is the last fifth of the episodes, at least one. An only episode is
        cut into five parts: of each the middle fifth is held out, and half as many rows on both
        sides are left out. Raises: ValueError for an only episode of less than 25 transitions.
        """
        if self.num_episodes > 1:
            num = max(1, round(self.num_episodes / 5))
            held = self.episode >= self.num_episodes - num
            return np.flatnonzero(~held), np.flatnonzero(held)
        if (num := len(self)) < 25:
            self._refuse(f"needs 25 transitions, or 2 episodes, to hold some out; got {num}")
        # Of each row the distance from the middle of its part, where a part has the length 2 num.
        distance = np.abs((10 * np.arange(num) + 5) % (2 * num) - num)
        return np.flatnonzero(5 * distance > 2 * num), np.flatnonzero(5 * distance < num)

    def subsample(
        self,
        num_episodes: int | None = None,
        every: int = 1,
        *,
        rng: np.random.Generator | None = None,
    ) -> Self:
        """The first `num_episodes` and of these every so many transitions, the first included.

        `rng` draws the episodes without repetition, and for each the transition to start with.
        Terminal transitions may be left out like all others; `returns` stay those of whole
        episodes. Raises: ValueError for more episodes than there are, or numbers below 1.
        """
        require({"every": every}, ("every",), lambda v: v >= 1, "to be at least 1")
        num = self.num_episodes if num_episodes is None else num_episodes
        if not 1 <= num <= self.num_episodes:
            self._refuse(f"has {self.num_episodes} episodes; num_episodes={num} needs 1 to that")
        which = np.arange(num)
        if rng is not None:
            which = np.sort(rng.choice(self.num_episodes, num, replace=False))
        rows = []
        for i in which:
            at = np.flatnonzero(self.episode == i)
            rows.append(at[0 if rng is None else rng.integers(min(every, len(at))) :: every])
        return self._rows(np.concatenate(rows), thin=every > 1)

    def _rows(self, rows: Int[np.ndarray, "m"], *, thin: bool = False) -> Self:
        """The given rows; `thin` if they are not all of their episodes."""
        thinned, kept = self.thinned, np.unique(self.episode[rows])
        ended = self.ended
        if thin:
            ended = self._ended()
            if thinned is None and self.rewards is not None:
                thinned = self.returns()
        fields = ("observations", "actions", "next_observations", "terminated", "episode")
        changes = {field: getattr(self, field)[rows] for field in fields}
        changes["rewards"] = None if self.rewards is None else self.rewards[rows]
        changes["thinned"] = None if thinned is None else thinned[kept]
        changes["ended"] = None if ended is None else ended[kept]
        return dataclasses.replace(self, **changes)

    def require_fit(
        self, environment: str, observation_dim: int, low: ArrayLike, high: ArrayLike
    ) -> None:
        """Raises ValueError naming both sides unless an environment could have made these.

        `low` and `high` (a,) are the box of its actions.
        """
        low, high = np.asarray(low), np.asarray(high)
        for kind, here, there in (
            ("observations", self.observation_dim, observation_dim),
            ("actions", self.action_dim, low.size),
        ):
            if here != there:
                self._refuse(f"has {kind} of {here} numbers, and {environment} has {there}")
        beyond = np.maximum(low[None] - self.actions, self.actions - high[None])
        row, column = np.unravel_index(np.argmax(beyond), beyond.shape)
        if beyond[row, column] > OUTSIDE * (high - low)[column]:
            self._refuse(
                f"has the action {self.actions[row, column]:g} in column {column} of row {row}, "
                f"outside of [{low[column]:g}, {high[column]:g}] of {environment}"
            )


def from_episodes(
    observations: Sequence[ArrayLike],
    actions: Sequence[ArrayLike],
    *,
    rewards: Sequence[ArrayLike] | None = None,
    terminated: Sequence[bool] | None = None,
    dt: float | None = None,
    name: str = "demonstrations",
) -> Demonstrations:
    """Demonstrations of episodes, each with observations (T + 1, o) and actions (T, a).

    `terminated` says of each episode whether the environment ended it, by default of none.
    Raises: ValueError as `Demonstrations`; for an episode without actions, or whose observations
    are not one more than its actions.
    """
    counts = {"observations": len(observations), "actions": len(actions)}
    for field, given in (("rewards", rewards), ("terminated", terminated)):
        counts |= {} if given is None else {field: len(given)}
    if len(set(counts.values())) > 1 or not len(actions):
        raise ValueError(f"{name} needs as many of each as episodes, at least 1; got {counts}")
    observations = [np.asarray(o) for o in observations]
    actions = [np.asarray(a) for a in actions]
    lengths = [len(a) for a in actions]
    for i, (o, length) in enumerate(zip(observations, lengths, strict=True)):
        if not length:
            raise ValueError(f"{name} needs actions in every episode; episode {i} has none")
        if len(o) != length + 1:
            missing = ": the last observation is missing" if len(o) == length else ""
            raise ValueError(
                f"{name} needs T + 1 observations for T actions; episode {i} has {len(o)} for "
                f"{length}{missing}"
            )
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = False if terminated is None else np.asarray(terminated, bool)
    return Demonstrations(
        observations=np.concatenate([o[:-1] for o in observations]),
        actions=np.concatenate(actions),
        next_observations=np.concatenate([o[1:] for o in observations]),
        terminated=ends,
        episode=np.repeat(np.arange(len(lengths)), lengths),
        rewards=None if rewards is None else np.concatenate([np.asarray(r) for r in rewards]),
        dt=dt,
        name=name,
    )


def from_rollouts(rollouts: Sequence[ArrayLike], *, name: str = "rollouts") -> Demonstrations:
    """Demonstrations of padded rollouts: obs (e, T + 1, o), actions (e, T, a), rewards (e, T),
    terminated (e, T) and length (e,), in this order, as of `rl.rollout`."""
    obs, actions, rewards, terminated, length = map(np.asarray, rollouts)
    each = list(enumerate(length.tolist()))
    return from_episodes(
        [obs[i, : n + 1] for i, n in each],
        [actions[i, :n] for i, n in each],
        rewards=[rewards[i, :n] for i, n in each],
        terminated=[bool(terminated[i, n - 1]) for i, n in each],
        name=name,
    )
