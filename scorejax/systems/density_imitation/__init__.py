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

import functools
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.density import DENSITIES
from scorejax.evaluate.progress import make_evaluate
from scorejax.objectives import imitation
from scorejax.systems.density_imitation.agent import Agent
from scorejax.systems.density_imitation.learner import Experience, Learner
from scorejax.systems.density_imitation.model import Expert, Imitator
from scorejax.systems.density_imitation.occupancy import FitOptions
from scorejax.systems.density_imitation.rewards import TERMINALS, TERMS
from scorejax.systems.density_imitation.tasks import get_task
from scorejax.train import parallel
from scorejax.train.optimizer import ADAM_OPTIONS, adam_from_config
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, Params, PRNGKeyArray, PyTree

AGENT_KEYS = (
    "environment", "horizon", "hidden", "log_std_min", "learning_rate", "num_envs", "capacity",
    "num_random", "steps_per_update", "updates_per_step", "gamma", "num_eval_episodes",
    "deterministic",
)  # fmt: skip
EXPERT_KEYS = ("target_entropy",)
IMITATOR_KEYS = ("method", "demonstrations", "num_demonstrations", "every")
FIT_KEYS = ("density_noise", "density_epochs", "density_batch_size")
METHOD_KEYS = {
    "ndi": (
        "density", *FIT_KEYS, "floor_margin", "terminal", "lambda_pi", "lambda_f", "entropy_term",
        "similarity_scale", "centre", "recent",
    ),
    "gail": ("lambda_pi", "penalty", "adversarial_reward"),
    "red": ("lambda_pi", *FIT_KEYS),
    "sqil": ("lambda_pi",),
    "value_dice": ("penalty",),
    "bc": (),
}  # fmt: skip
"""Keys that a method reads; a config with those of another is refused."""
KEYS = ("model", *AGENT_KEYS)
"""Keys that a config needs, beside `system` and those of the training loop."""
_METHOD_OPTIONS = tuple(dict.fromkeys(key for keys in METHOD_KEYS.values() for key in keys))
OPTIONS = (*EXPERT_KEYS, *IMITATOR_KEYS, *_METHOD_OPTIONS, *ADAM_OPTIONS)
"""Keys that some models and methods read, and some of them need."""


def build(config: ConfigDict) -> System:
    """The training of an agent. Raises: ValueError, or FileNotFoundError without demonstrations."""
    model = make_model(config)
    # Both before the learner: these mistakes need no density.
    if config.model == "expert" or config.method != "bc":
        rows = {"num_envs": jax.ShapeDtypeStruct((config.num_envs,), jnp.int32)}
        parallel.require_spreadable(rows)
    pictures = ("motion", "density")  # Of launch.evaluate alone.
    metrics = {name: build for name, build in model.metrics().items() if name not in pictures}
    evaluate = make_evaluate(metrics, config.best_metric, unranked=("bound",))
    learner = model.learner()
    # Training goes on, and is evaluated, with the same demonstrations alone.
    inputs = {} if config.model == "expert" else {"reward": learner.frozen} | model.inputs()
    players = jax.eval_shape(learner.init, jax.random.key(0))
    return System(
        init=jax.jit(lambda rng: (learner.init(rng), {})),
        loss=functools.partial(_loss, learner) if inputs else learner.loss,
        # Each player by itself: clipping one's gradient leaves the others' as they are.
        tx=optax.multi_transform(
            {player: adam_from_config(config) for player in players},
            lambda params: {player: player for player in params},
        ),
        source=learner.source,
        evaluate=evaluate,
        frozen=inputs,
        published=lambda state: (state.params, state.model_state),
        paths=("demonstrations",),
    )


def _loss(
    learner: Learner,
    params: Params,
    state: TrainState,
    rng: PRNGKeyArray,
    batch: Batch,
    frozen: dict[str, PyTree],
) -> tuple[Array, Aux]:
    """The loss of an imitator, whose frozen arrays are its reward's and `Imitator.inputs`."""
    return learner.loss(params, state, rng, batch, frozen["reward"])


def make_model(config: ConfigDict) -> Expert | Imitator:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, ("model",))
    return choose("model", config.model, {"expert": expert, "imitator": imitator})(config)


def expert(config: ConfigDict) -> Expert:
    """An agent that is paid by its environment, at a temperature that keeps its entropy."""
    require_keys(config, (*AGENT_KEYS, *EXPERT_KEYS))
    _require_read(config, "an expert", EXPERT_KEYS)
    return Expert(**_of_agents(config), target_entropy=config.target_entropy)


def imitator(config: ConfigDict) -> Imitator:
    """An agent that is paid for doing as demonstrated, by one of `METHOD_KEYS`."""
    require_keys(config, (*AGENT_KEYS, *IMITATOR_KEYS))
    keys = choose("method", config.method, METHOD_KEYS)
    require_keys(config, keys)
    _require_read(config, f"the method {config.method!r}", (*IMITATOR_KEYS, *keys))
    known = {"entropy_term": TERMS, "density": DENSITIES, "terminal": TERMINALS}
    known |= {"adversarial_reward": imitation.ADVERSARIAL_REWARDS}
    read = lambda *names: [name for name in names if name in keys]
    for key in read(*known):
        require_known(key, config[key], known[key])
    at_least_0 = read("density_noise", "floor_margin", "lambda_pi", "lambda_f", "penalty")
    require(config, at_least_0, lambda v: 0 <= v < math.inf, "to be 0 or positive")
    require(config, read("similarity_scale"), lambda v: 0 < v < math.inf, "to be positive")
    counts = read("recent", "density_epochs", "density_batch_size")
    counts = ("num_demonstrations", "every", *counts)
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    options = {key: config[key] for key in keys if key not in FIT_KEYS}
    if read(*FIT_KEYS):
        options["fit"] = FitOptions(*(config[key] for key in FIT_KEYS))
    options |= {key: config[key] for key in ("method", "num_demonstrations", "every", "seed")}
    return Imitator(**_of_agents(config), path=config.demonstrations, **options)


def _require_read(config: ConfigDict, who: str, keys: Collection[str]) -> None:
    """Raises ValueError for a key that only other models or methods read."""
    for key in (*EXPERT_KEYS, *IMITATOR_KEYS, *_METHOD_OPTIONS):
        if key in config and key not in keys:
            raise ValueError(f"{who} does not read {key}; leave it out, as the variants do")


def _of_agents(config: ConfigDict) -> dict[str, Any]:
    counts = ("num_envs", "capacity", "steps_per_update", "updates_per_step", "num_eval_episodes")
    require(config, counts, lambda v: v >= 1, "to be at least 1")
    require(config, ("num_random", "horizon"), lambda v: v >= 0, "to be 0 or more")
    require(config, ("gamma",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("log_std_min",), lambda v: v < 2, "to be less than 2")
    task = get_task(config.environment, horizon=config.horizon)
    return {
        "agent": Agent(task, tuple(config.hidden), config.log_std_min),
        "experience": Experience(**{name: config[name] for name in Experience._fields}),
        "gamma": config.gamma,
        "num_eval_episodes": config.num_eval_episodes,
        "deterministic": config.deterministic,
    }
