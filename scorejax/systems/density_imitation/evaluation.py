# SPDX-License-Identifier: Apache-2.0
"""Evaluation of an agent: returns, distance from demonstrations, pictures of where it has been.

All are of the same episodes, which begin with the same draws every time.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
import scipy.spatial

from scorejax.data.demonstrations import Demonstrations
from scorejax.density import get_density
from scorejax.evaluate.progress import Metric, remembered
from scorejax.report import Evaluation
from scorejax.rl.rollout import Episodes
from scorejax.systems.density_imitation.agent import Agent, random_returns
from scorejax.systems.density_imitation.occupancy import Occupancy
from scorejax.systems.density_imitation.tasks import Plane
from scorejax.typing import PRNGKeyArray, PyTree, Variables

Play = Callable[[Variables], Episodes]
NUM_FRAMES = 60
NUM_RANDOM = 100
"""Episodes of uniform actions."""
MOST_PAIRS = 20_000
"""Pairs of each side, at most, whose distances are measured."""


def make_play(agent: Agent, num_episodes: int, *, deterministic: bool) -> Play:
    """variables -> episodes on the host, kept until the next variables."""

    @jax.jit
    def play(variables: Variables) -> Episodes:
        # No seed of launch.sample, whose episodes may be the demonstrations.
        rngs = jax.random.split(jax.random.key(2**32 - 1), num_episodes)
        return agent.play(variables, rngs, deterministic=deterministic)

    return remembered(lambda variables: jax.device_get(play(variables)))


def returns_metric(agent: Agent, play: Play, demonstrations: Demonstrations | None) -> Metric:
    """Undiscounted returns: mean, deviation and length of episodes, and the picture "paths".

    "normalised_return" is 0 for uniform actions and 1 for the demonstrations' own mean return. It
    is left out unless this is the larger.
    """
    paid = demonstrations is not None and demonstrations.has_returns

    @functools.cache
    def scale() -> tuple[float, float]:
        uniform = random_returns(agent, NUM_RANDOM)
        return float(uniform.mean()), float(demonstrations.returns().mean())

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        from scorejax.evaluate import trajectory_pictures  # A second of matplotlib.

        episodes = play(variables)
        returns = episodes.rewards.sum(axis=1, dtype=float)
        scalars = {"return": float(returns.mean()), "return_std": float(returns.std())}
        scalars["episode_length"] = float(episodes.length.mean())
        if paid:
            low, high = scale()
            if high > low:
                scalars["normalised_return"] = (scalars["return"] - low) / (high - low)
        shown = both_paths(episodes, demonstrations, agent.task.plane)
        picture = trajectory_pictures.paths_picture(shown, labels=agent.task.plane.labels)
        return Evaluation(scalars, {"paths": picture})

    return metric


def chamfer_metric(play: Play, demonstrations: Demonstrations) -> Metric:
    """Scalar "chamfer": how far pairs of state and action are from the nearest of the others.

    The mean over the agent's pairs of the distance to the nearest demonstrated one, plus that the
    other way round, in standard deviations of the demonstrations.
    """
    mean, std = demonstrations.moments()
    thin = lambda rows: rows[:: -(-len(rows) // MOST_PAIRS)]
    expert = thin((demonstrations.pairs() - mean[None]) / std[None])

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        episodes = play(variables)
        inside = np.arange(episodes.actions.shape[1])[None] < episodes.length[:, None]
        pairs = np.concatenate([episodes.observations[:, :-1], episodes.actions], axis=2)[inside]
        own = thin((pairs - mean[None]) / std[None])
        return Evaluation({"chamfer": chamfer_distance(own, expert)}, {})

    return metric


def chamfer_distance(rows: np.ndarray, others: np.ndarray) -> float:
    """Mean distance of each row (n, d) to the nearest of the others (m, d), and back, summed."""
    nearest = lambda a, b: float(scipy.spatial.KDTree(b).query(a)[0].mean())
    return nearest(rows, others) + nearest(others, rows)


def motion_metric(agent: Agent, play: Play, demonstrations: Demonstrations | None) -> Metric:
    """The animation "motion" of all episodes, beside the demonstrations."""

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        from scorejax.evaluate import trajectory_pictures  # A second of matplotlib.

        shown = both_paths(play(variables), demonstrations, agent.task.plane)
        options = {"labels": agent.task.plane.labels, "num_frames": NUM_FRAMES}
        return Evaluation({}, {"motion": trajectory_pictures.motion_frames(shown, **options)})

    return metric


def density_metric(
    agent: Agent, play: Play, demonstrations: Demonstrations, density: str, occupancy: Occupancy
) -> Metric:
    """The picture "density": paths of both beside draws of states from the density."""
    draw = get_density(density).sample
    pairs = draw(jax.random.key(0), occupancy.density, MOST_PAIRS)
    mean, std = demonstrations.moments()
    size = demonstrations.observation_dim
    states = np.asarray(pairs)[:, :size] * std[None, :size] + mean[None, :size]

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        from scorejax.evaluate import trajectory_pictures  # A second of matplotlib.

        plane = agent.task.plane
        shown = both_paths(play(variables), demonstrations, plane)
        options = {"labels": plane.labels, "density": plane.project(states)}
        return Evaluation({}, {"density": trajectory_pictures.paths_picture(shown, **options)})

    return metric


def both_paths(
    episodes: Episodes, demonstrations: Demonstrations | None, plane: Plane
) -> dict[str, list[np.ndarray]]:
    """The ways (T + 1, 2) of demonstrations, if there are any, and of episodes in the plane."""
    ends = (episodes.length + 1).tolist()
    each = zip(episodes.observations, ends, strict=True)
    own = {"agent": [plane.project(obs[:end]) for obs, end in each]}
    if demonstrations is None:
        return own
    demonstrated = [
        plane.project(np.concatenate([part.observations, part.next_observations[-1:]]))
        for part in demonstrations.episodes()
    ]
    return {"demonstrations": demonstrated} | own
