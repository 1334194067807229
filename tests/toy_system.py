# SPDX-License-Identifier: Apache-2.0
"""The smallest system that trains: a noise-conditional network on two-dimensional data.

Run as a program it trains in a directory, so that tests can kill it:
    python tests/toy_system.py WORKDIR [--devices=2] [--key=value of the config ...]
"""

import ast
import os
import sys
from typing import NamedTuple

os.environ.setdefault("PJRT_NPROC", "16")

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.random import draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.train.loop import train
from scorejax.train.optimizer import adam
from scorejax.train.state import averaged
from scorejax.typing import Aux

WIDTH = 16


class Source(NamedTuple):
    """Batches of points on a circle that follow from the step alone."""

    batch_size: int

    def init(self, start_step, rng):
        return start_step

    def next(self, step, state, rng):
        angle = np.random.default_rng(step).uniform(0, 2 * np.pi, self.batch_size)
        points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return step + 1, {"x": points.astype(np.float32)}


class ToySystem(NamedTuple):
    """A score network with one hidden layer, trained by denoising at random noise levels."""

    source: Source
    tx: object
    width: int = WIDTH
    poison_step: int | tuple[int, ...] = -1
    frozen: tuple = ()
    published: object = averaged
    paths: tuple = ()
    kept: object = None
    phases: tuple = ()

    def init(self, rng):
        first, second = jax.random.split(rng)
        params = {
            "hidden": {"kernel": jax.random.normal(first, (3, self.width))},
            "out": {
                "kernel": 0.1 * jax.random.normal(second, (self.width, 2)),
                "bias": jnp.zeros(2),
            },
        }
        return params, {"mean": jnp.zeros(2), "seen": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, rng, batch):
        level_rng, noise_rng = split(example_keys(rng, batch))
        x = batch["x"]
        sigma = 0.1 + 0.9 * draw_rows(jax.random.uniform, level_rng, (x.shape[0], 1))
        noise = draw_rows(jax.random.normal, noise_rng, x.shape)
        features = jnp.concatenate([x + sigma * noise, sigma], axis=1)
        output = jnp.tanh(features @ params["hidden"]["kernel"]) @ params["out"]["kernel"]
        error = jnp.mean((output + params["out"]["bias"][None] + noise) ** 2)
        is_poisoned = jnp.any(state.step == jnp.atleast_1d(jnp.array(self.poison_step)))
        error = jnp.where(is_poisoned, jnp.nan, error)
        old = state.model_state
        model_state = {
            "mean": 0.9 * old["mean"] + 0.1 * jnp.mean(x, axis=0),
            "seen": old["seen"] + 1,
        }
        return error, Aux({"output_size": jnp.mean(jnp.abs(output))}, model_state)

    def evaluate(self, rng, variables):
        size = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(variables[0]))
        picture = np.zeros((4, 6, 3), np.uint8)
        return Evaluation({"size": size}, {"blank": picture})


CONFIG = {
    "system": "toy",
    "seed": 0,
    "num_train_steps": 40,
    "batch_size": 16,
    "accumulation": 1,
    "num_steps_per_call": 2,
    "ema_rate": 0.9,
    "log_every": 2,
    "eval_every": 20,
    "save_every": 4,
    "keep_latest": 3,
    "best_metric": "",
    "best_mode": "min",
    "width": WIDTH,
    "poison_step": -1,
    "learning_rate": 1e-2,
}


def build(config) -> ToySystem:
    """The system that a config describes."""
    return ToySystem(
        source=Source(config["batch_size"]),
        tx=adam(config["learning_rate"], warmup=5, clip_norm=1.0),
        width=config["width"],
        poison_step=config["poison_step"],
    )


def main(workdir: str, *arguments: str, build=build, defaults=CONFIG) -> None:
    """Trains what `build` makes of the default config and the arguments."""
    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(given.pop("devices", 1)))
    parsed = {
        key: value if isinstance(defaults[key], str) else ast.literal_eval(value)
        for key, value in given.items()
    }
    config = defaults | parsed
    try:
        train(build(config), config, workdir)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
