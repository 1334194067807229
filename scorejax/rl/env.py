# SPDX-License-Identifier: Apache-2.0
"""Environments in JAX, by name, and many of them in parallel.

An environment is a pair of pure functions, so that a compiled loop can hold the environments, the
memory and the updates of a policy, with no call of the host between. See `interface` for what they
promise.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.choices import choose, require_known
from scorejax.random import Rng, keys_of_rows
from scorejax.rl.classic_control import mountain_car, pendulum
from scorejax.rl.interface import Env, Numbers, Stepped, Transitioned, VectorEnv, require_count
from scorejax.rl.linear_control import linear_gaussian, point_mass
from scorejax.typing import Array, PRNGKeyArray, PyTree

__all__ = [
    "ENVS", "Env", "Stepped", "Transitioned", "VectorEnv", "get_env", "linear_gaussian",
    "mountain_car", "pendulum", "point_mass", "tabular", "vectorize", "with_clock",
]  # fmt: skip


def tabular(
    P: Numbers,
    p0: Numbers,
    *,
    rewards: Numbers | None = None,
    terminal: Numbers | None = None,
    horizon: int = 100,
) -> Env:
    """A finite decision process: P (s, a, s') the law of the next state, p0 (s,) of the first.

    Observations are one-hot (s,). Actions are vectors (a,) in [0, 1]^a, of which the largest
    component acts, so that one-hot vectors name actions. rewards (s, a) are 0 unless given. To
    enter a state that is `terminal` (s,) ends the episode.

    Raises: ValueError unless P and p0 are laws and all shapes fit.
    """
    require_count(horizon=horizon)
    P, p0 = np.asarray(P, float), np.asarray(p0, float)
    if P.ndim != 3 or P.shape[0] != P.shape[2]:
        raise ValueError(f"P needs the shape (states, actions, states); got {P.shape}.")
    num_states, num_actions = P.shape[:2]
    rewards = np.zeros((num_states, num_actions)) if rewards is None else np.asarray(rewards)
    terminal = np.zeros(num_states, bool) if terminal is None else np.asarray(terminal, bool)
    shapes = {"p0": (p0, P.shape[:1]), "rewards": (rewards, P.shape[:2])}
    for name, (array, shape) in {**shapes, "terminal": (terminal, P.shape[:1])}.items():
        if array.shape != shape:
            raise ValueError(f"{name} needs the shape {shape}; got {array.shape}.")
    for name, law in {"P": P, "p0": p0}.items():
        if law.min() < 0 or np.abs(law.sum(-1) - 1).max() > 1e-6:
            raise ValueError(f"{name} needs rows of probabilities that sum to 1.")
    with np.errstate(divide="ignore"):
        log_P, log_p0 = np.log(P), np.log(p0)
    one_hot = lambda state: jax.nn.one_hot(state, num_states)

    def reset(rng: PRNGKeyArray) -> tuple[Array, Array]:
        state = jax.random.categorical(rng, jnp.asarray(log_p0))
        return state, one_hot(state)

    def step(rng: PRNGKeyArray, state: Array, action: Array) -> Transitioned:
        index = jnp.argmax(action)
        after = jax.random.categorical(rng, jnp.asarray(log_P)[state, index])
        reward = jnp.asarray(rewards, float)[state, index]
        return Transitioned(after, one_hot(after), reward, jnp.asarray(terminal)[after])

    box = np.zeros(num_actions), np.ones(num_actions)
    return Env("tabular", reset, step, horizon, num_states, *box)


def with_clock(env: Env) -> Env:
    """The environment with the elapsed share of its horizon as the last number of observations.

    The horizon terminates an episode, for tasks to which the end belongs. A value without the clock
    could not depend on how near the end is. Source: Pardo et al. 2018, arXiv:1712.00378, Section 3.
    """

    def observed(obs: Array, elapsed: Array) -> Array:
        return jnp.append(obs, (elapsed / env.horizon).astype(obs.dtype))

    def reset(rng: PRNGKeyArray) -> tuple[tuple[PyTree, Array], Array]:
        state, obs = env.reset(rng)
        return (state, jnp.int32(0)), observed(obs, jnp.int32(0))

    def step(rng: PRNGKeyArray, state: tuple[PyTree, Array], action: Array) -> Transitioned:
        inner, obs, reward, terminated = env.step(rng, state[0], action)
        elapsed = state[1] + 1
        ended = terminated | (elapsed >= env.horizon)
        return Transitioned((inner, elapsed), observed(obs, elapsed), reward, ended)

    return env._replace(reset=reset, step=step, observation_dim=env.observation_dim + 1)


class _Running(NamedTuple):
    state: PyTree
    elapsed: Array
    """Steps of the episode, (e,)."""


def vectorize(env: Env, num_envs: int) -> VectorEnv:
    """`num_envs` copies of an environment, which its horizon truncates and which reset themselves.

    An episode that terminates in its last step is terminated, not truncated. The first state of the
    next episode is drawn in the step that ends one.
    Raises: ValueError unless num_envs and the horizon are at least 1.
    """
    require_count(num_envs=num_envs, horizon=env.horizon)

    def reset(rng: Rng) -> tuple[_Running, Array]:
        state, obs = jax.vmap(env.reset)(keys_of_rows(rng, num_envs))
        return _Running(state, jnp.zeros(num_envs, jnp.int32)), obs

    def step_one(rng: PRNGKeyArray, running: _Running, action: Array) -> Stepped:
        step_rng, reset_rng = jax.random.split(rng)
        state, next_obs, reward, terminated = env.step(step_rng, running.state, action)
        elapsed = running.elapsed + 1
        truncated = (elapsed >= env.horizon) & ~terminated
        ended = terminated | truncated
        first_state, first_obs = env.reset(reset_rng)
        choose_first = lambda new, old: jnp.where(ended, new, old)
        state = jax.tree.map(choose_first, first_state, state)
        running = _Running(state, jnp.where(ended, 0, elapsed))
        obs = choose_first(first_obs, next_obs)
        return Stepped(running, obs, next_obs, reward, terminated, truncated)

    def step(rng: Rng, running: _Running, action: Array) -> Stepped:
        return jax.vmap(step_one)(keys_of_rows(rng, len(action)), running, action)

    return VectorEnv(
        env.name,
        num_envs,
        reset,
        step,
        env.horizon,
        env.observation_dim,
        env.action_low,
        env.action_high,
    )


ENVS: Mapping[str, Callable[..., Env]] = {
    "linear_gaussian": linear_gaussian,
    "mountain_car": mountain_car,
    "pendulum": pendulum,
    "point_mass": point_mass,
    "tabular": tabular,
}


def get_env(name: str, **options: Any) -> Env:
    """The environment of that name. Raises: ValueError for unknown names and options, in a line."""
    make = choose("environment", name, ENVS)
    signature = inspect.signature(make)
    for option in options:
        require_known(f"option of the environment {name!r}", option, signature.parameters)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ValueError(f"the environment {name!r} lacks an option: {error}") from None
    return make(**options)
