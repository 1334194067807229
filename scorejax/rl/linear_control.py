# SPDX-License-Identifier: Apache-2.0
"""Linear systems with Gaussian noise and quadratic costs, whose optima have closed forms.

The forms hold as long as no action is clipped: choose max_action large for them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.rl.interface import Env, Numbers, Transitioned, require_count, symmetric_box
from scorejax.typing import Array, PRNGKeyArray


def point_mass(
    dim: int = 2,
    *,
    dt: float = 0.05,
    noise: float = 0.0,
    max_action: Numbers = 1.0,
    max_place: float = math.inf,
    starts: Numbers | None = None,
    horizon: int = 200,
) -> Env:
    """A mass that acceleration moves: x' = x + dt v, v' = v + dt a, and noise on both; no end.

    The state and observation is (x, v), the action the acceleration a, each component up to
    max_action. `noise` is the standard deviation that a step adds to each component of the state.
    The reward, of the state before the step, is -(|x|^2 + 0.1 |v|^2 + 0.01 |a|^2). An episode
    starts in a row of `starts` (n, 2 dim), drawn uniformly; without them x ~ U(-1, 1) at rest. At
    max_place a wall stops the component of x that runs into it.

    Raises: ValueError for an invalid number or shape, naming it.
    """
    require_count(dim=dim, horizon=horizon)
    low, high = symmetric_box(max_action, dim)
    if not dt > 0 or not noise >= 0 or not max_place > 0:
        raise ValueError(
            "point_mass needs dt > 0, noise >= 0 and max_place > 0; got "
            f"dt={dt}, noise={noise}, max_place={max_place}."
        )
    if starts is not None:
        starts = np.asarray(starts, float)
        if starts.ndim != 2 or starts.shape[1] != 2 * dim or not len(starts):
            raise ValueError(
                f"starts needs rows (x, v) of {2 * dim} numbers; got shape {starts.shape}."
            )

    def reset(rng: PRNGKeyArray) -> tuple[Array, Array]:
        if starts is None:
            place = jax.random.uniform(rng, (dim,), minval=-1.0, maxval=1.0)
            state = jnp.concatenate([place, jnp.zeros_like(place)])
        else:
            state = jnp.asarray(starts)[jax.random.randint(rng, (), 0, len(starts))]
        return state, state

    def step(rng: PRNGKeyArray, state: Array, action: Array) -> Transitioned:
        place, velocity = state[:dim], state[dim:]
        force = jnp.clip(action, jnp.asarray(low), jnp.asarray(high))
        reward = -(place @ place + 0.1 * velocity @ velocity + 0.01 * force @ force)
        state = jnp.concatenate([place + dt * velocity, velocity + dt * force])
        if noise:
            state = state + noise * jax.random.normal(rng, state.shape, state.dtype)
        beyond = jnp.abs(state[:dim]) > max_place
        place = jnp.clip(state[:dim], -max_place, max_place)
        state = jnp.concatenate([place, jnp.where(beyond, 0.0, state[dim:])])
        return Transitioned(state, state, reward, jnp.zeros((), bool))

    return Env("point_mass", reset, step, horizon, 2 * dim, low, high)


def linear_gaussian(
    A: Numbers,
    B: Numbers,
    Sigma: Numbers,
    *,
    state_cost: Numbers = 1.0,
    action_cost: Numbers = 1.0,
    cross_cost: Numbers = 0.0,
    start_mean: Numbers = 0.0,
    start_covariance: Numbers | None = None,
    max_action: Numbers = 10.0,
    horizon: int = 200,
) -> Env:
    """The system s' = A s + B u + w, w ~ N(0, Sigma); A (s, s), B (s, a), Sigma (s, s); no end.

    States are observed. The reward, of the state before the step, is -(s.Q s + 2 s.N u + u.R u)
    with Q, R and N the state, action and cross costs; a number stands for that multiple of the
    identity, and for N for a matrix filled with it. Episodes start from a Gaussian, whose
    covariance is Sigma unless given. Scalars are taken as 1 x 1 matrices.

    Raises: ValueError for shapes that do not fit and for covariances with negative eigenvalues.
    """
    require_count(horizon=horizon)
    A, B, Sigma = (np.atleast_2d(np.asarray(matrix, float)) for matrix in (A, B, Sigma))
    dim, action_dim = B.shape
    Q, R = _multiple(state_cost, dim), _multiple(action_cost, action_dim)
    N = np.broadcast_to(np.asarray(cross_cost, float), (dim, action_dim))
    start = Sigma if start_covariance is None else np.atleast_2d(start_covariance)
    squares = ("A", A, dim), ("state_cost", Q, dim), ("action_cost", R, action_dim)
    for name, matrix, size in squares:
        if matrix.shape != (size, size):
            raise ValueError(
                f"{name} needs the shape {(size, size)} beside B of {B.shape}; got {matrix.shape}."
            )
    noise_root, start_root = _root("Sigma", Sigma, dim), _root("start_covariance", start, dim)
    mean = np.broadcast_to(np.asarray(start_mean, float), (dim,))
    low, high = symmetric_box(max_action, action_dim)

    def product(matrix: np.ndarray, vector: Array) -> Array:
        return jnp.matmul(jnp.asarray(matrix, vector.dtype), vector, precision="highest")

    def reset(rng: PRNGKeyArray) -> tuple[Array, Array]:
        state = jnp.asarray(mean) + product(start_root, jax.random.normal(rng, (dim,)))
        return state, state

    def step(rng: PRNGKeyArray, state: Array, action: Array) -> Transitioned:
        action = jnp.clip(action, jnp.asarray(low), jnp.asarray(high))
        reward = -jnp.sum(state * (product(Q, state) + 2 * product(N, action)))
        reward = reward - jnp.sum(action * product(R, action))
        noise = product(noise_root, jax.random.normal(rng, state.shape, state.dtype))
        state = product(A, state) + product(B, action) + noise
        return Transitioned(state, state, reward, jnp.zeros((), bool))

    return Env("linear_gaussian", reset, step, horizon, dim, low, high)


def _multiple(cost: Numbers, dim: int) -> np.ndarray:
    cost = np.asarray(cost, float)
    return cost if cost.ndim else cost * np.eye(dim)


def _root(name: str, covariance: np.ndarray, dim: int) -> np.ndarray:
    """A matrix whose product with its transpose is the covariance, which may be singular."""
    if covariance.shape != (dim, dim):
        raise ValueError(f"{name} needs the shape {(dim, dim)}; got {covariance.shape}.")
    values, vectors = np.linalg.eigh(covariance)
    # The eigenvalues of a singular matrix may come out as negative as rounding.
    if not values.min() >= -1e-12 * max(values.max(), 1e-300):
        raise ValueError(f"{name} needs eigenvalues of at least 0; got {values.min():.3g}.")
    return vectors * np.sqrt(np.maximum(values, 0))
