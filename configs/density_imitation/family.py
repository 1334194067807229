# SPDX-License-Identifier: Apache-2.0
"""Defaults and variants of the experiments with imitation; weights and sizes are ours."""

from ml_collections import ConfigDict

from configs.variants import Edit, make_edit, unchanged


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
    config.target_entropy = -1.0  # of experts, for each dimension of an action

    config.method = "ndi"  # gail, red, sqil, value_dice, bc
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
    config.penalty, config.adversarial_reward = 10.0, "softplus"

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


def debug(config: ConfigDict) -> ConfigDict:
    """Small networks and short training, for seconds on a CPU."""
    config.update({"hidden": (16,), "batch_size": 16, "num_random": 50, "capacity": 1000})
    config.update({"num_train_steps": 40, "num_steps_per_call": 10, "log_every": 10})
    config.update({"eval_every": 20, "save_every": 20, "num_eval_episodes": 2, "horizon": 20})
    config.update({"num_envs": 2, "density_epochs": 2})
    config.update({"density": "gaussian", "recent": 20})
    return config


MODELS: dict[str, Edit] = {
    "imitator": unchanged,
    "expert": make_edit(model="expert", best_metric="return", best_mode="max"),
}
METHODS: dict[str, Edit] = {
    name: make_edit(method=name) for name in ("ndi", "gail", "red", "sqil", "value_dice")
}
# With smaller deviations the states that an expert stays in outweigh all others.
METHODS["bc"] = make_edit(method="bc", log_std_min=-2.0)
SIZES: dict[str, Edit] = {"full": unchanged, "debug": debug}
AXES = (MODELS, METHODS, SIZES)
