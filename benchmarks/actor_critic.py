# SPDX-License-Identifier: Apache-2.0
"""Environment steps of soft actor-critic per second and core, on the device and by gymnasium.

    pip install -e '.[bench,rl]' && pip install stable-baselines3==2.9.2
    pip install sbx-rl==0.28.0  # needs jax < 0.12
    python -m benchmarks.actor_critic [--rounds=5]

The pendulum, two hidden layers of 256, batches of 256, Adam at 3e-4, a learnt temperature and an
update each step, as is the default of stable-baselines3 and sbx. `scorejax` steps, remembers and
updates in one compiled call, in an environment of JAX; "gymnasium" is the same learner, whose
environment is that of the others. "256 environments" are stepped together between two updates. One
core, processor time, turns in one process; a package that is not installed is left out.
"""

# ruff: noqa: E402  (the libraries read these settings as they start)

import argparse
import os
import time
from collections.abc import Callable
from typing import NamedTuple

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

from benchmarks import timing  # first: it sets what JAX and PyTorch read as they start

# isort: split
import importlib
import importlib.util

import jax

from configs.density_imitation import family
from scorejax import systems
from scorejax.train.state import TrainState
from scorejax.train.step import make_train_step, scan_online_steps

NUM_RANDOM = 1000
NUM_UPDATES = 200
"""Updates in a turn."""


class Contender(NamedTuple):
    """A turn, and the steps of environments in it."""

    turn: Callable[[], object]
    num_steps: int


def ours(environment: str, num_envs: int = 1) -> Contender:
    """The expert of `systems.density_imitation`; turns begin after the random steps."""
    config = family.configured(
        "expert", environment=environment, num_envs=num_envs, num_random=NUM_RANDOM,
        capacity=50_000, num_train_steps=NUM_UPDATES, eval_every=NUM_UPDATES,
    )  # fmt: skip
    system = systems.load(config)
    step = make_train_step(system.loss, system.tx, ema_rate=config.ema_rate)
    call = jax.jit(scan_online_steps(step, system.source.step, NUM_UPDATES), donate_argnums=0)
    init_rng, *rngs = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(lambda rng: TrainState.create(*system.init(rng), system.tx))(init_rng)
    kept = [(state, jax.jit(system.source.init)(rngs[1], state))]

    def turn() -> None:
        kept[0], metrics = call(kept[0], (), tuple(rngs))
        assert metrics["finite"].all()

    return Contender(turn, NUM_UPDATES * num_envs)


def theirs(package: str) -> Contender:
    """`SAC` of stable_baselines3 or sbx, with its defaults but for the memory's size."""
    learner = importlib.import_module(package).SAC(
        "MlpPolicy", "Pendulum-v1", learning_starts=NUM_RANDOM, buffer_size=50_000, seed=0
    )
    learner.learn(NUM_RANDOM)
    return Contender(
        lambda: learner.learn(NUM_UPDATES, reset_num_timesteps=False, log_interval=10**9),
        NUM_UPDATES,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    contenders = {
        "scorejax": ours("pendulum"),
        "scorejax, 256 environments": ours("pendulum", 256),
        "scorejax, gymnasium": ours("Pendulum-v1"),
    }
    for package in ("stable_baselines3", "sbx"):
        if importlib.util.find_spec(package):
            contenders[package] = theirs(package)
    turns = {name: contender.turn for name, contender in contenders.items()}
    times = timing.compare(turns, rounds=args.rounds, calls=1, clock=time.process_time)
    per_thousand = {
        name: [1000 * taken / contenders[name].num_steps for taken in times[name]] for name in times
    }
    rate = lambda taken: f"{1000 / sorted(taken)[len(taken) // 2]:,.0f} steps/s"
    notes = {name: rate(taken) for name, taken in per_thousand.items()}
    timing.report(
        "1000 steps of environments",
        per_thousand,
        notes,
        [name for name in times if "scorejax" in name],
    )


if __name__ == "__main__":
    main()
