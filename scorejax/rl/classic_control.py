# SPDX-License-Identifier: Apache-2.0
"""Two classic tasks of continuous control: the pendulum and the mountain car.

Both are gymnasium's, constant by constant (Pendulum-v1, MountainCarContinuous-v0).
"""

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.rl.interface import Env, Transitioned, require_count
from scorejax.typing import Array, PRNGKeyArray


def pendulum(*, horizon: int = 200) -> Env:
    """A pendulum to swing up by a torque too weak to lift it at once; it never terminates.

    The state is (angle, angular velocity), the angle 0 upwards and in [-pi, pi], the velocity in
    [-8, 8]. Observations are (cos, sin, velocity), actions torques in [-2, 2]. The reward, of the
    state before the step, is -(angle^2 + 0.1 velocity^2 + 0.001 torque^2). Steps last 0.05 s.
    """
    require_count(horizon=horizon)
    gravity, dt, max_speed, max_torque = 10.0, 0.05, 8.0, 2.0

    def observe(state: Array) -> Array:
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])

    def reset(rng: PRNGKeyArray) -> tuple[Array, Array]:
        high = jnp.array([np.pi, 1.0])
        state = jax.random.uniform(rng, (2,), minval=-high, maxval=high)
        return state, observe(state)

    def step(rng: PRNGKeyArray, state: Array, action: Array) -> Transitioned:
        angle, velocity = state
        torque = jnp.clip(action[0], -max_torque, max_torque)
        reward = -(angle**2 + 0.1 * velocity**2 + 0.001 * torque**2)
        faster = velocity + (1.5 * gravity * jnp.sin(angle) + 3 * torque) * dt
        velocity = jnp.clip(faster, -max_speed, max_speed)
        # Kept in one turn, so that single precision does not lose digits of an angle that grows.
        turned = angle + velocity * dt
        state = jnp.stack([turned - 2 * np.pi * jnp.round(turned / (2 * np.pi)), velocity])
        return Transitioned(state, observe(state), reward, jnp.zeros((), bool))

    box = np.array([max_torque])
    return Env("pendulum", reset, step, horizon, 3, -box, box)


def mountain_car(*, horizon: int = 999) -> Env:
    """A car to drive out of a valley by an engine too weak for the slope; at the top it terminates.

    The state and observation is (position, velocity), in [-1.2, 0.6] and [-0.07, 0.07], the action
    a force in [-1, 1]. The reward is 100 at the goal, position 0.45, minus 0.1 force^2.
    """
    require_count(horizon=horizon)
    lowest, highest, max_speed, goal = -1.2, 0.6, 0.07, 0.45

    def reset(rng: PRNGKeyArray) -> tuple[Array, Array]:
        position = jax.random.uniform(rng, minval=-0.6, maxval=-0.4)
        state = jnp.stack([position, jnp.zeros_like(position)])
        return state, state

    def step(rng: PRNGKeyArray, state: Array, action: Array) -> Transitioned:
        position, velocity = state
        force = jnp.clip(action[0], -1.0, 1.0)
        velocity = velocity + 0.0015 * force - 0.0025 * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -max_speed, max_speed)
        position = jnp.clip(position + velocity, lowest, highest)
        velocity = jnp.where((position == lowest) & (velocity < 0), 0.0, velocity)
        terminated = (position >= goal) & (velocity >= 0)
        state = jnp.stack([position, velocity])
        return Transitioned(state, state, 100.0 * terminated - 0.1 * force**2, terminated)

    box = np.ones(1)
    return Env("mountain_car", reset, step, horizon, 2, -box, box)
