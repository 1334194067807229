# SPDX-License-Identifier: Apache-2.0
"""Imitation with neural density models: a density of demonstrations is the reward.

Two models. The "expert" learns from the reward of its environment; `launch.sample` then writes its
episodes, which are demonstrations like those of anybody else. The "imitator" learns from a file of
demonstrations: it fits a density to their pairs of states and actions, and climbs a lower bound of
-KL(its own occupancy || that density), by soft actor-critic without a discriminator. `method` puts
a baseline in its place.

Source: Kim et al. 2021, arXiv:2010.09808. No code was published; critics of the bound, weights and
all numbers are this library's.
"""

import math
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.density import DENSITIES
from scorejax.evaluate.progress import make_evaluate
from scorejax.objectives import imitation
from scorejax.systems.density_imitation.agent import Agent
from scorejax.systems.density_imitation.learner import Experience
from scorejax.systems.density_imitation.model import METHODS, Expert, Imitator
from scorejax.systems.density_imitation.occupancy import FitOptions
from scorejax.systems.density_imitation.rewards import TERMINALS, TERMS
from scorejax.systems.density_imitation.tasks import get_task
from scorejax.train.optimizer import ADAM_OPTIONS, adam_from_config
from scorejax.train.system import System

AGENT_KEYS = (
    "environment", "horizon", "hidden", "log_std_min", "learning_rate", "num_envs", "capacity",
    "num_random", "steps_per_update", "updates_per_step", "gamma", "target_entropy",
    "num_eval_episodes", "deterministic",
)  # fmt: skip
IMITATION_KEYS = (
    "method", "demonstrations", "num_demonstrations", "every", "density", "density_noise",
    "density_epochs", "density_batch_size",
    "floor_margin", "terminal", "lambda_pi", "lambda_f", "entropy_term", "similarity_scale",
    "centre", "recent", "penalty", "adversarial_reward",
)  # fmt: skip
KEYS = ("model", *AGENT_KEYS, *IMITATION_KEYS)
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = ADAM_OPTIONS


def build(config: ConfigDict) -> System:
    """The training of an agent. Raises: ValueError, or FileNotFoundError without demonstrations."""
    model = make_model(config)
    # Both before the learner: these mistakes need no density.
    if config.model == "expert" or config.method != "bc":
        _require_devices(config.num_envs)
    metrics = {name: build for name, build in model.metrics().items() if name != "motion"}
    evaluate = make_evaluate(metrics, config.best_metric, unranked=("bound",))
    learner = model.learner()
    players = jax.eval_shape(learner.init, jax.random.key(0))
    return System(
        init=jax.jit(lambda rng: (learner.init(rng), {})),
        loss=learner.loss,
        # Each player by itself: clipping one's gradient leaves the others' as they are.
        tx=optax.multi_transform(
            {player: adam_from_config(config) for player in players},
            lambda params: {player: player for player in params},
        ),
        source=learner.source,
        evaluate=evaluate,
        frozen=learner.frozen,
        published=lambda state: (state.params, state.model_state),
        paths=("demonstrations",),
    )


def make_model(config: ConfigDict) -> Expert | Imitator:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, ("model",))
    return choose("model", config.model, {"expert": expert, "imitator": imitator})(config)


def expert(config: ConfigDict) -> Expert:
    """An agent that is paid by its environment, at a temperature that keeps its entropy."""
    require_keys(config, AGENT_KEYS)
    return Expert(**_of_agents(config), target_entropy=config.target_entropy)


def imitator(config: ConfigDict) -> Imitator:
    """An agent that is paid for doing as demonstrated, by one of `METHODS`."""
    require_keys(config, (*AGENT_KEYS, *IMITATION_KEYS))
    known = {"method": METHODS, "entropy_term": TERMS, "density": DENSITIES}
    known |= {"terminal": TERMINALS, "adversarial_reward": imitation.ADVERSARIAL_REWARDS}
    for key, names in known.items():
        require_known(key, config[key], names)
    at_least_0 = ("density_noise", "floor_margin", "lambda_pi", "lambda_f", "penalty")
    require(config, at_least_0, lambda v: 0 <= v < math.inf, "to be 0 or positive")
    require(config, ("similarity_scale",), lambda v: 0 < v < math.inf, "to be positive")
    counts = ("num_demonstrations", "every", "recent", "density_epochs", "density_batch_size")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    fit = FitOptions(config.density_noise, config.density_epochs, config.density_batch_size)
    elsewhere = ("demonstrations", "density_noise", "density_epochs", "density_batch_size")
    options = {key: config[key] for key in IMITATION_KEYS if key not in elsewhere}
    found = {"path": config.demonstrations, "fit": fit, "seed": config.seed}
    return Imitator(**_of_agents(config), **options, **found)


def _require_devices(num_envs: int) -> None:
    num_devices = jax.device_count()
    if num_envs % num_devices:
        nearest = -(-num_envs // num_devices) * num_devices
        raise ValueError(
            f"num_envs={num_envs} does not divide evenly over {num_devices} device(s); the nearest "
            f"above is {nearest}"
        )


def _of_agents(config: ConfigDict) -> dict[str, Any]:
    counts = ("num_envs", "capacity", "steps_per_update", "updates_per_step", "num_eval_episodes")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    require(config, ("num_random", "horizon"), lambda v: v >= 0, "to be 0 or more")
    require(config, ("gamma",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("log_std_min",), lambda v: v < 2, "to be less than 2")
    task = get_task(config.environment, horizon=config.horizon)
    return {
        "agent": Agent(task, tuple(config.hidden), config.log_std_min),
        "seen": Experience(**{name: config[name] for name in Experience._fields}),
        "gamma": config.gamma,
        "num_eval_episodes": config.num_eval_episodes,
        "deterministic": config.deterministic,
    }
