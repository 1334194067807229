# SPDX-License-Identifier: Apache-2.0
"""What an agent is worth: returns, the terms of the bound, and pictures of where it has been."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.data.demonstrations import Demonstrations
from scorejax.evaluate.progress import Metric
from scorejax.report import Evaluation
from scorejax.rl.rollout import Episodes
from scorejax.systems.density_imitation.agent import Agent, random_returns
from scorejax.systems.density_imitation.tasks import Plane
from scorejax.typing import Array, PRNGKeyArray, Variables

NUM_PAIRS = 1024
"""Transitions from which the bound is estimated."""
NUM_FRAMES = 60


def returns_metric(
    agent: Agent, num_episodes: int, *, deterministic: bool, demonstrations: Demonstrations | None
) -> Metric:
    """Undiscounted returns of episodes: mean, deviation, lengths, and pictures.

    "normalised_return" is 0 for uniform actions and 1 for the demonstrations' own mean return.
    """
    play = jax.jit(functools.partial(agent.play, deterministic=deterministic))
    scale = None
    if demonstrations is not None and demonstrations.has_returns:
        uniform = float(random_returns(agent, num_episodes).mean())
        scale = uniform, float(demonstrations.returns().mean())

    def metric(rng: PRNGKeyArray, variables: Variables, *frozen: PyTree) -> Evaluation:
        from scorejax.evaluate import trajectory_pictures  # A second of matplotlib.

        episodes = jax.device_get(play(variables, jax.random.split(rng, num_episodes)))
        returns = episodes.returns.astype(float)
        scalars = {"return": float(returns.mean()), "return_std": float(returns.std())}
        scalars["episode_length"] = float(episodes.length.mean())
        if scale is not None:
            low, high = scale
            scalars["normalised_return"] = (scalars["return"] - low) / (high - low)
        paths = {"agent": paths_of(episodes, agent.task.plane)}
        if demonstrations is not None:
            paths = {"demonstrations": demonstrated_paths(demonstrations, agent.task.plane)} | paths
        labels = agent.task.plane.labels
        shown = {"paths": trajectory_pictures.paths_picture(paths, labels=labels)}
        shown["motion"] = trajectory_pictures.motion_frames(
            paths, labels=labels, num_frames=NUM_FRAMES
        )
        return Evaluation(scalars, shown)

    return metric


def paths_of(episodes: Episodes, plane: Plane) -> list[np.ndarray]:
    """The way (T + 1, 2) of each episode in the plane."""
    ends = (episodes.length + 1).tolist()
    return [plane.project(obs[:end]) for obs, end in zip(episodes.observations, ends, strict=True)]


def demonstrated_paths(demonstrations: Demonstrations, plane: Plane) -> list[np.ndarray]:
    """The way of each demonstrated episode in the plane."""
    return [
        plane.project(np.concatenate([part.observations, part.next_observations[-1:]]))
        for part in demonstrations.episodes()
    ]
