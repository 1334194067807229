# SPDX-License-Identifier: Apache-2.0
"""Paths of densities from one with a known normaliser to another, for annealed importance sampling.

A ladder q_0, q_1, .. q_n is joined by bridges, along which log p is linear in beta:

    log p = (1 - beta) log q_l + beta log q_{l+1},    bridge l = 0 .. n - 1.

A path is a sequence of steps, each along one bridge. Annealing from a base to a target is the
ladder of the two. At a point the path holds log q and its score at both ends of the bridge, from
which every beta follows without another call; and log-weights grow by (change of beta) times
(difference of the ends), which loses no digits, where a difference of neighbouring log p would lose
most of them in single precision.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.samplers.hamiltonian import LogProb, Point, value_and_score

Betas = Float[np.ndarray, "_"]


class Ends(NamedTuple):
    """log q at both ends of a bridge, in nats, and its scores."""

    low: Float[Array, "b"]
    high: Float[Array, "b"]
    low_score: Float[Array, "b *d"]
    high_score: Float[Array, "b *d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """Densities p_0 .. p_k; step i = 1 .. k leads from p_{i-1} to p_i along one bridge.

    `ends_of` gives the log-densities q_l and q_{l+1} of bridge l, a traced integer. `starts` and
    `stops` are the betas at which a step begins and ends on its bridge.
    """

    ends_of: Callable[[Int[Array, ""]], tuple[LogProb, LogProb]]
    bridges: Int[np.ndarray, "k"]
    starts: Float[np.ndarray, "k"]
    stops: Float[np.ndarray, "k"]

    @property
    def num_steps(self) -> int:
        return len(self.bridges)

    @property
    def enters(self) -> np.ndarray:
        """Whether a step begins on another bridge than the step before it, (k,)."""
        return np.diff(self.bridges, prepend=self.bridges[:1]) != 0

    def reversed(self) -> "Path":
        """The path from p_k back to p_0."""
        return Path(self.ends_of, self.bridges[::-1], self.stops[::-1], self.starts[::-1])

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Bridge and beta of p_0 .. p_k."""
        bridges = np.concatenate([self.bridges[:1], self.bridges])
        return bridges, np.concatenate([self.starts[:1], self.stops])

    def ends(self, bridge: Int[Array, ""], x: Float[Array, "b *d"]) -> Ends:
        """Both ends of a bridge at x: a gradient call of each."""
        (low, low_score), (high, high_score) = (
            value_and_score(log_prob, x) for log_prob in self.ends_of(bridge)
        )
        return Ends(low, high, low_score, high_score)

    def evaluate(
        self, bridge: Int[Array, ""], beta: Float[Array, ""], x: Float[Array, "b *d"]
    ) -> Point:
        """log p and its score at x: a gradient call of each end of the bridge."""
        return at_beta(beta, x, self.ends(bridge, x))


def at_beta(beta: Float[Array, ""], x: Float[Array, "b *d"], ends: Ends) -> Point:
    """log p and its score at x from those of the ends of the bridge; they are the Point's parts."""
    mix = lambda low, high: (1 - beta) * low + beta * high
    return Point(x, mix(ends.low, ends.high), mix(ends.low_score, ends.high_score), ends)


def geometric_path(base_log_prob: LogProb, log_prob: LogProb, betas: Betas) -> Path:
    """The path base^(1 - beta) target^beta for betas that rise from 0 to 1.

    Raises: ValueError unless they do.
    """
    return ladder_path(lambda _: (base_log_prob, log_prob), 1, [betas])


def level_path(
    log_prob_at: Callable[[Int[Array, ""], Float[Array, "b *d"]], Float[Array, "b"]],
    num_bridges: int,
    betas: Betas | Sequence[Betas],
) -> Path:
    """The path through log_prob_at(l, x), l = 0 .. num_bridges, by `betas` between neighbours.

    All levels must be densities of the same variable: whoever scales x between levels adds the
    logarithm of the Jacobian. `betas` rise from 0 to 1, the same on all bridges or a list of one
    for each; [0, 1] steps from level to level. The level l is a traced integer.

    Raises: ValueError unless num_bridges >= 1, and as `geometric_path`.
    """
    if num_bridges < 1:
        raise ValueError(f"a ladder needs at least 2 densities; got {num_bridges + 1}.")
    grids = [betas] * num_bridges if np.ndim(betas[0]) == 0 else list(betas)

    def ends_of(bridge: Int[Array, ""]) -> tuple[LogProb, LogProb]:
        return (lambda x: log_prob_at(bridge, x)), (lambda x: log_prob_at(bridge + 1, x))

    return ladder_path(ends_of, num_bridges, grids)


def ladder_path(
    ends_of: Callable[[Int[Array, ""]], tuple[LogProb, LogProb]],
    num_bridges: int,
    betas: Sequence[Betas],
) -> Path:
    """The path over bridges 0 .. num_bridges - 1, with betas for each.

    Raises: ValueError unless there are betas for each bridge, and all rise from 0 to 1.
    """
    if len(betas) != num_bridges:
        raise ValueError(f"{num_bridges} bridges need as many lists of betas; got {len(betas)}.")
    grids = [np.asarray(grid, np.float64) for grid in betas]
    for grid in grids:
        if not (grid[0] == 0 and grid[-1] == 1 and np.all(np.diff(grid) >= 0)):
            raise ValueError(f"betas need to rise from 0 to 1; got {grid[0]} to {grid[-1]}.")
    return Path(
        ends_of,
        np.repeat(np.arange(num_bridges), [len(grid) - 1 for grid in grids]),
        np.concatenate([grid[:-1] for grid in grids]),
        np.concatenate([grid[1:] for grid in grids]),
    )


def sigmoid_betas(num: int, *, reach: float = 4.0) -> Betas:
    """`num` betas from 0 to 1, dense at both ends: a logistic curve over +-reach.

    Raises: ValueError unless num >= 2 and reach > 0.
    """
    if num < 2 or not reach > 0:
        raise ValueError(f"betas need num >= 2 and reach > 0; got num={num}, reach={reach}.")
    curve = 1 / (1 + np.exp(-np.linspace(-reach, reach, num)))
    return (curve - curve[0]) / (curve[-1] - curve[0])
