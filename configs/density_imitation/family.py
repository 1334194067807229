# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the experiments with imitation; weights and sizes are ours."""

from typing import Any

from ml_collections import ConfigDict

from configs import variants
from configs.variants import Edit, unchanged


def default() -> ConfigDict:
    """An agent, its soft actor-critic, and what it imitates if it does."""
    config = ConfigDict()
    config.system = "density_imitation"
    config.seed = 42
    config.model = "imitator"  # expert

    config.horizon = 0  # 0: the environment's own
    config.num_envs = 1
    config.capacity = 1_000_000
    config.num_random = 1000  # steps of random actions before the first update
    config.steps_per_update, config.updates_per_step = 1, 1
    config.hidden = (256, 256)
    config.log_std_min = -5.0
    config.gamma = 0.99

    config.method = "ndi"
    config.demonstrations = ""  # a file, such as launch.sample writes; empty: the task's own
    config.num_demonstrations = 1
    config.every = 1  # keeps every so many transitions of a demonstration
    config.density = "made"
    config.density_noise = 0.1  # while it is fitted, in standard deviations
    config.density_epochs, config.density_batch_size = 300, 64
    config.floor_margin = 15.0  # nats below the demonstrations' lowest hundredth
    config.terminal = "absorbing"  # shifted
    config.lambda_pi, config.lambda_f = 0.2, 0.005
    config.entropy_term = "log_displacement"  # similarity, learned, nearest_neighbours, none
    config.similarity_scale, config.centre = 1.0, False
    config.recent = 1000  # steps of each environment that negatives are drawn from

    config.batch_size = 256
    config.accumulation = 1
    config.num_steps_per_call = 100
    config.learning_rate = 3e-4
    config.ema_rate = 0.995  # the critics' averages are their targets
    config.log_every = 1000
    config.keep_latest = 2
    config.max_nonfinite_updates = 0
    config.num_eval_episodes, config.deterministic = 10, True
    config.best_metric, config.best_mode = "chamfer", "min"  # imitators have no reward
    return config


def configured(variant: str, *, eval_every: int, **values: Any) -> ConfigDict:
    """The defaults with other values, saved when evaluated, and then as the variant says."""
    config = default()
    config.update({"eval_every": eval_every, "save_every": eval_every, **values})
    return variants.apply(config, variant, *AXES)


def locomotion(variant: str, **values: Any) -> ConfigDict:
    """`configured` for the large tasks of MuJoCo: more random steps, larger batches of a fit."""
    large = {"num_random": 10_000, "density_epochs": 100, "density_batch_size": 256}
    return configured(variant, **large, **values)


def debug(config: ConfigDict) -> ConfigDict:
    """Small networks and short training, for seconds on a CPU."""
    config.update({"hidden": (16,), "batch_size": 16, "num_random": 50, "capacity": 1000})
    config.update({"num_train_steps": 40, "num_steps_per_call": 10, "log_every": 10})
    config.update({"eval_every": 20, "save_every": 20, "num_eval_episodes": 2, "horizon": 20})
    config.num_envs = 2
    small = {"density_epochs": 2, "density": "gaussian", "recent": 20}
    config.update({key: value for key, value in small.items() if key in config})
    return config


FIT = ("density_noise", "density_epochs", "density_batch_size")
DENSITY = (
    "density", *FIT, "floor_margin", "terminal", "lambda_pi", "lambda_f", "entropy_term",
    "similarity_scale", "centre", "recent",
)  # fmt: skip
"""Keys that `default` has for the method ndi."""
IMITATION = ("method", "demonstrations", "num_demonstrations", "every", *DENSITY)


def _expert(config: ConfigDict) -> ConfigDict:
    for key in IMITATION:
        del config[key]
    # The target is for each dimension of an action.
    config.update({"model": "expert", "target_entropy": -1.0})
    config.update({"best_metric": "return", "best_mode": "max"})
    return config


def _baseline(method: str, *keeps: str, **values: Any) -> Edit:
    """Another method, which reads `keeps` of `DENSITY` alone, and the given values."""

    def edit(config: ConfigDict) -> ConfigDict:
        for key in set(DENSITY) - set(keeps):
            del config[key]
        config.update({"method": method, **values})
        return config

    return edit


METHODS: dict[str, Edit] = {
    "ndi": unchanged,
    "gail": _baseline("gail", "lambda_pi", penalty=10.0, adversarial_reward="softplus"),
    "red": _baseline("red", "lambda_pi", *FIT),
    "sqil": _baseline("sqil", "lambda_pi"),
    "value_dice": _baseline("value_dice", penalty=10.0),
    # With smaller deviations the states that an expert stays in outweigh all others.
    "bc": _baseline("bc", log_std_min=-2.0),
}
AGENTS: dict[str, Edit] = {"imitator": unchanged, "expert": _expert, **METHODS}
"""An expert, or an imitator by one of the methods."""
SIZES: dict[str, Edit] = {"full": unchanged, "debug": debug}
AXES = (AGENTS, SIZES)
