# SPDX-License-Identifier: Apache-2.0
"""The smallest system that makes its own data: a controller, its environments and their memory.

The environment is x' = 0.9 x + gain x + noise; the best controller, gain = -0.9, keeps x at noise.
Run as a program it trains in a directory, as toy_system.py does.
"""

import sys

import jax
import jax.numpy as jnp
import optax
import toy_system  # sets what must stand before JAX starts

from scorejax.report import Evaluation
from scorejax.train.system import System
from scorejax.typing import Aux, OnlineSource

CAPACITY = 8
CONFIG = toy_system.CONFIG | {"system": "online_toy", "num_train_steps": 40, "num_envs": 8}


def environments(num_envs: int) -> OnlineSource:
    """Steps every environment once, remembers it in a ring buffer, and draws one memory of each."""

    def init(rng, state):
        x = jax.random.normal(rng, (num_envs,))
        return {"x": x, "ring": jnp.zeros((num_envs, CAPACITY, 2)), "position": jnp.int32(0)}

    def step(carry, state, rng):
        noise_rng, row_rng = jax.random.split(rng)
        x, position = carry["x"], carry["position"]
        moved = (0.9 + state.params["gain"]) * x + 0.1 * jax.random.normal(noise_rng, x.shape)
        ring = carry["ring"].at[:, position % CAPACITY].set(jnp.stack([x, moved], axis=1))
        rows = jax.random.randint(row_rng, x.shape, 0, jnp.minimum(position + 1, CAPACITY))
        drawn = ring[jnp.arange(len(x)), rows]
        batch = {"x": drawn[:, 0], "moved": drawn[:, 1]}
        return {"x": moved, "ring": ring, "position": position + 1}, batch

    return OnlineSource(init, step)


def loss(params, state, rng, batch):
    """Mean of (0.9 x + gain x)^2 over remembered x."""
    value = jnp.mean(((0.9 + params["gain"]) * batch["x"]) ** 2)
    return value, Aux({"x": jnp.mean(batch["x"] ** 2)}, state.model_state)


def build(config) -> System:
    return System(
        init=lambda rng: ({"gain": jnp.float32(0.05)}, {}),
        loss=loss,
        tx=optax.sgd(0.1),
        source=environments(config["num_envs"]),
        evaluate=lambda rng, variables: Evaluation({"gain": float(variables[0]["gain"])}, {}),
    )


if __name__ == "__main__":
    toy_system.main(*sys.argv[1:], build=build, defaults=CONFIG)
