# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: their environments, and the plane in which their states are drawn."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scorejax.choices import require_known, unknown
from scorejax.data import lasa
from scorejax.data.demonstrations import Demonstrations
from scorejax.rl import env
from scorejax.rl.gymnasium_env import gymnasium_vector
from scorejax.rl.interface import VectorEnv

LASA = "lasa/"
"""Before the name of a motion of the handwriting set."""
LASA_EVERY = 20
"""Positions of a drawing for one that is kept: fifty are left."""
ROOM = 1.5
"""Largest force and place of a pen, in units of the largest in the drawings."""
TUTORIAL = {"A": 0.95, "B": 0.5, "Sigma": 0.09, "start_covariance": 0.1863799}
"""A scalar system, see `rl.linear_gaussian`, that starts at rest under u = -.8 s + .4 e."""


class Plane(NamedTuple):
    """The two numbers of an observation that pictures show."""

    labels: tuple[str, str]
    project: Callable[[np.ndarray], np.ndarray]
    """observations (..., o) -> (..., 2)."""


class Task(NamedTuple):
    """A name, environments by their number, and the plane in which they are drawn."""

    name: str
    make: Callable[[int], VectorEnv]
    plane: Plane
    on_host: bool = False
    """Whether a simulator on the host steps them, which no checkpoint saves."""
    demonstrations: Callable[[], Demonstrations] | None = None
    """Demonstrations that come with the task, if any."""


def _components(*labels: str) -> Plane:
    return Plane(labels, lambda obs: obs[..., :2])


def _angle(obs: np.ndarray) -> np.ndarray:
    return np.stack([np.arctan2(obs[..., 1], obs[..., 0]), obs[..., 2]], axis=-1)


PLANES = {
    "pendulum": Plane(("angle", "angular velocity"), _angle),
    "mountain_car": _components("position", "velocity"),
    "point_mass": _components("x", "y"),
    "linear_gaussian": Plane(("state", "0"), lambda obs: np.concatenate([obs, 0 * obs], axis=-1)),
}
OPTIONS = {"linear_gaussian": TUTORIAL}


def get_task(name: str, *, horizon: int = 0) -> Task:
    """A task by name; `horizon` 0 keeps its own time limit.

    Names are those of `PLANES`, "lasa/Angle" and other motions of the handwriting set, and those of
    gymnasium, such as "HalfCheetah-v5".
    Raises: ValueError for an unknown name, or without the package that has it.
    """
    limit = {"horizon": horizon} if horizon else {}
    if name in PLANES:
        one = env.get_env(name, **OPTIONS.get(name, {}), **limit)
        return Task(name, functools.partial(env.vectorize, one), PLANES[name])
    if name.startswith(LASA):
        return handwriting(name.removeprefix(LASA), **limit)
    if "-v" not in name:
        raise unknown("environment", name, (*PLANES, f"{LASA}Angle", "HalfCheetah-v5"))
    limit = {"max_episode_steps": horizon} if horizon else {}
    make = lambda num_envs: gymnasium_vector(name, num_envs, **limit)
    return Task(name, make, _components("observation 0", "observation 1"), on_host=True)


def handwriting(motion: str, **limit: int) -> Task:
    """A pen that starts where people did, with half as much force and space again as they used.

    It sees the time, and its letter ends with the time: people lift the pen while it moves, so that
    to go on after the last point is nowhere demonstrated.
    """
    require_known("motion", motion, lasa.MOTIONS)

    @functools.cache
    def recorded() -> Demonstrations:
        return lasa.demonstrations(motion, every=LASA_EVERY)

    def horizon() -> int:
        return limit.get("horizon", int(recorded().lengths().max()))

    def make(num_envs: int) -> VectorEnv:
        shown = recorded()
        starts = np.stack([part.observations[0] for part in shown.episodes()])
        options = {"dt": shown.dt, "starts": starts, "horizon": horizon()}
        options["max_action"] = ROOM * np.abs(shown.actions).max(axis=0)
        options["max_place"] = ROOM * float(np.abs(shown.observations[:, :2]).max())
        return env.vectorize(env.with_clock(env.point_mass(**options)), num_envs)

    clocked = functools.cache(lambda: _with_clock(recorded(), horizon()))
    return Task(f"{LASA}{motion}", make, PLANES["point_mass"], demonstrations=clocked)


def _with_clock(shown: Demonstrations, horizon: int) -> Demonstrations:
    """Whole episodes as `env.with_clock` observes them, all of which end."""
    steps = np.concatenate([np.arange(length) for length in shown.lengths()])
    timed = lambda obs, step: np.concatenate([obs, step[:, None] / horizon], axis=1)
    last = np.append(np.diff(shown.episode) > 0, True)
    return dataclasses.replace(
        shown,
        observations=timed(shown.observations, steps),
        next_observations=timed(shown.next_observations, steps + 1),
        terminated=last,
    )
