# SPDX-License-Identifier: Apache-2.0
"""How well do densities and baselines imitate an expert, from how many demonstrations?

    python -m launch.train --config=configs/density_imitation/pendulum.py:expert \\
        --workdir=runs/expert
    python -m launch.sample --workdir=runs/expert --num=25 --out=runs/expert/episodes
    python -m benchmarks.imitation --demonstrations=runs/expert/episodes.npz

Trains an imitator for each entry, number of demonstrations and seed, in directories below `--out`;
what is trained there is left as it is. An entry is a method, or a density of "ndi" with
or without a term of the states' entropy, such as "maf" and "made+learned". The table has the
interquartile mean of normalised returns (0: uniform actions, 1: the demonstrations' mean), over
episodes of all seeds by the last parameters, with its 95 % interval by the bootstrap over seeds and
episodes, and the mean Chamfer distance. Numbers: docs/results.md, "Imitation".
"""

import argparse
import functools
import importlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from configs.density_imitation.family import METHODS
from scorejax import runs, systems
from scorejax.density import DENSITIES
from scorejax.systems.density_imitation.agent import random_returns
from scorejax.systems.density_imitation.evaluation import chamfer_metric, make_play
from scorejax.train.loop import train

ENTRIES = ("made", "made+none", "gaussian_mixture", "kernel_density", "maf", "energy", "gail",
           "red", "sqil", "value_dice", "bc")  # fmt: skip
NUM_EPISODES = 20


class Imitated(NamedTuple):
    """Normalised returns of the episodes of one run, and its Chamfer distance."""

    returns: np.ndarray
    chamfer: float


def config_of(entry: str, options: argparse.Namespace, num: int, seed: int) -> ConfigDict:
    """The config of an entry; `num` demonstrations."""
    name, _, term = entry.partition("+")
    module = importlib.import_module(f"configs.density_imitation.{options.task}")
    config = module.get_config(name if name in METHODS else "ndi")
    changes: dict[str, Any] = {"num_train_steps": options.steps, "seed": seed}
    changes |= {"eval_every": options.steps, "save_every": options.steps, "best_metric": ""}
    changes |= {"demonstrations": options.demonstrations, "num_demonstrations": num}
    if name not in METHODS:
        changes |= {"density": name}
    if term:
        changes |= {"entropy_term": term}
    config.update(changes)
    return config


def imitate(entry: str, options: argparse.Namespace, num: int, seed: int) -> Imitated:
    """Trains an imitator, unless it is trained, and plays its episodes."""
    config = config_of(entry, options, num, seed)
    workdir = pathlib.Path(options.out, f"{options.task}_{entry}_{num}_{seed}")
    model = systems.load_model(config)
    train(systems.load(config), config, workdir)  # Returns at once if it has, and checks the data.
    variables = runs.open(workdir).variables
    play = make_play(model.agent, NUM_EPISODES, deterministic=True)
    returns = play(variables).rewards.sum(axis=1, dtype=float)
    low, high = uniform_return(options.task), model.available.returns().mean()
    chamfer = chamfer_metric(play, model.available)
    distance = chamfer(jax.random.key(0), variables).scalars["chamfer"]
    return Imitated((returns - low) / (high - low), distance)


@functools.cache
def uniform_return(task: str) -> float:
    """The mean return of uniform actions."""
    config = importlib.import_module(f"configs.density_imitation.{task}").get_config("expert")
    return float(random_returns(systems.load_model(config).agent, 100).mean())


def interquartile(imitated: list[Imitated]) -> tuple[float, float, float]:
    """The mean of the middle half of all episodes, and its 95 % interval.

    The bootstrap draws seeds, and episodes of each.
    """
    table, rng = np.stack([one.returns for one in imitated]), np.random.default_rng(0)
    middle = lambda values: stats.trim_mean(values.ravel(), 0.25)
    draws = []
    for _ in range(2000):
        rows = table[rng.integers(len(table), size=len(table))]
        columns = rng.integers(rows.shape[1], size=rows.shape)
        draws.append(middle(np.take_along_axis(rows, columns, axis=1)))
    return float(middle(table)), *map(float, np.quantile(draws, (0.025, 0.975)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--demonstrations", required=True)
    parser.add_argument("--task", default="pendulum")
    parser.add_argument("--entries", default=",".join(ENTRIES))
    parser.add_argument("--numbers", default="1,5,25")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", default="runs/imitation")
    options = parser.parse_args()
    for entry in options.entries.split(","):
        known = {*METHODS, *DENSITIES}
        if entry.partition("+")[0] not in known:
            parser.error(f"{entry!r} is none of {', '.join(sorted(known))}")
    for num in map(int, options.numbers.split(",")):
        for entry in options.entries.split(","):
            runs_of_seeds = [imitate(entry, options, num, seed) for seed in range(options.seeds)]
            middle, low, high = interquartile(runs_of_seeds)
            chamfer = np.mean([one.chamfer for one in runs_of_seeds])
            print(
                f"{num:3d} {entry:24s} {middle:6.3f} [{low:6.3f}, {high:6.3f}]  {chamfer:6.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
