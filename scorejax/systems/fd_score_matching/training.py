# SPDX-License-Identifier: Apache-2.0
"""Pieces that the experiments share: objectives and optimiser by config, losses, metrics.

Each objective is divided by its `expected_multiple`, so that its mean over directions is that of
score matching, or of denoising score matching, in full, and losses are of one size.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require
from scorejax.energies import Energy, Score
from scorejax.evaluate import progress
from scorejax.evaluate.held_out import HeldOut
from scorejax.objectives import finite_difference
from scorejax.objectives.directions import DIRECTIONS, check_eps
from scorejax.objectives.score_matching import (
    ENERGY_OBJECTIVES,
    SCORE_OBJECTIVES,
    Objective,
    expected_multiple,
)
from scorejax.objectives.sliced import exact_score_matching
from scorejax.random import Rng, draw_rows, example_keys, split
from scorejax.train.optimizer import adam_from_config
from scorejax.train.state import TrainState
from scorejax.train.system import System
from scorejax.typing import Array, Aux, Batch, LossFn, Params, PRNGKeyArray, Shape, Variables

RowLosses = Callable[[Params, Rng, Array], Array]
"""(params, rng, images (b, *d) as the data set has them) -> (b,)."""
EnergyObjective = Callable[[Energy, Rng, Array], Array]
"""(energy, rng, x (b, *d)) -> (b,)."""
ScoreObjective = Callable[[Score, Rng, Array], Array]
"""(score, rng, x (b, *d)) -> (b,)."""

OPTIONS = ("objective", "eps", "sigma", "direction", "num_directions")
OPTIMIZER_OPTIONS = ("learning_rate", "beta1", "beta2", "grad_clip", "cosine_decay")
USES = {
    "sm": (),
    "ssm": ("direction", "num_directions"),
    "ssm_vr": ("direction", "num_directions"),
    "fd_ssm": ("eps", "direction", "num_directions"),
    "dsm": ("sigma",),
    "fd_dsm": ("sigma", "eps", "direction", "num_directions"),
}
"""The options that each objective takes."""
MULTI_SCALE = ("sigma_min", "sigma_max", "target_sigma")
UNRANKED = ("samples", "codes")
"""Metrics without a scalar of their name."""


def maximum_likelihood(energy: Energy, rng: Rng, x: Array) -> Array:
    """The energy -log p(x) itself; p must be normalised."""
    return energy(x)


def multi_scale_fd_denoising(
    energy: Energy, rng: Rng, x: Array, *, sigma_min: float, sigma_max: float,
    target_sigma: float, **options,
) -> Array:  # fmt: skip
    """FD-DSM at levels uniform on [sigma_min, sigma_max], weighted by target_sigma^4 / level^2.

    Source: arXiv:1910.07762, Eq. 8; the published code spaces the levels over a batch by position.
    """
    level_rng, rng = split(rng)
    uniform = draw_rows(jax.random.uniform, level_rng, x.shape[:1])
    level = sigma_min + (sigma_max - sigma_min) * uniform
    value = finite_difference.multi_scale_fd_denoising(
        energy, rng, x, sigma=level, target_sigma=target_sigma, **options
    )
    return target_sigma**4 / level**2 * value


def make_objective(config: ConfigDict, shape: Shape, *, normalised: bool) -> EnergyObjective:
    """The objective of an energy of examples of `shape`, by config.

    `normalised` densities have "mle" too, the others "fd_mdsm".
    Raises: ValueError for an unknown objective, or an impossible step, noise level or direction.
    """
    options = objective_options(config, shape)
    objectives = {
        name: _scaled(
            functools.partial(objective, **{use: options[use] for use in USES[name]}), name
        )
        for name, objective in ENERGY_OBJECTIVES.items()
    }
    if normalised:
        return choose("objective", config.objective, objectives | {"mle": maximum_likelihood})
    require(config, MULTI_SCALE, lambda v: 0 < v < math.inf, "to be a positive number")
    along = {use: options[use] for use in USES["fd_ssm"]}
    levels = {name: config[name] for name in MULTI_SCALE}
    multi = functools.partial(multi_scale_fd_denoising, **levels, **along)
    return choose("objective", config.objective, objectives | {"fd_mdsm": _scaled(multi, "fd_dsm")})


def make_score_objective(config: ConfigDict, shape: Shape) -> ScoreObjective:
    """The objective of a score of examples of `shape`, by config. Raises: as `make_objective`."""
    require_step(config, shape)
    objective = choose("objective", config.objective, SCORE_OBJECTIVES)
    options = {"direction": choose("direction", config.direction, DIRECTIONS)}
    if config.objective.startswith("fd"):
        options["eps"] = config.eps
    return _scaled(functools.partial(objective, **options), config.objective)


def objective_options(config: ConfigDict, shape: Shape) -> dict:
    """The options of objectives, by name. Raises: ValueError for an impossible value."""
    require_step(config, shape)
    require(config, ("sigma",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("num_directions",), lambda v: v >= 1, "to be at least 1")
    direction = choose("direction", config.direction, DIRECTIONS)
    return {name: config[name] for name in OPTIONS[1:]} | {"direction": direction}


def require_step(config: ConfigDict, shape: Shape) -> None:
    """Raises ValueError unless eps is positive and moves examples of size 1 in single precision."""
    require(config, ("eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    check_eps(config.eps, np.ones((1, *shape), np.float32))


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind clipping; with `cosine_decay` its rate falls to zero. Raises: ValueError."""
    tx = adam_from_config(config)
    if not config.cosine_decay:
        return tx
    fall = optax.cosine_decay_schedule(1.0, config.num_train_steps)
    return optax.chain(tx, optax.scale_by_schedule(fall))


def make_loss(row_losses: RowLosses) -> LossFn:
    """Builds the batch mean of losses per image; every example draws from its own key."""

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        losses = row_losses(params, example_keys(rng, batch), batch["image"])
        return jnp.mean(losses), Aux({}, state.model_state)

    return loss


def image_system(model: Any, config: ConfigDict) -> System:
    """The training of a model that has `init`, `loss`, `tx`, `data` and `metrics`.

    Raises: ValueError for an impossible value, FileNotFoundError without its data.
    """
    return System(
        init=model.init,
        loss=model.loss,
        tx=model.tx,
        source=model.data.training_source(config.batch_size),
        evaluate=progress.make_evaluate(model.metrics(), config.best_metric, unranked=UNRANKED),
        paths=model.data.paths,
    )


def held_out_loss(losses: RowLosses, held_out: HeldOut) -> progress.Metric:
    """The mean loss of held-out images, see `progress.held_out_loss`."""
    of_rows = lambda variables, rngs, x: losses(variables[0], rngs, x)
    return progress.held_out_loss(of_rows, held_out.images(), batch_size=held_out.examples_at_once)


def exact_metric(
    energy: Callable[[Params, Array], Array], x: Array, name: str = "score_matching"
) -> progress.Metric:
    """The score-matching loss of examples x (n, *d) by dense Hessians.

    Each device takes one after the other.
    """

    def measure(variables: Variables, rows: Batch) -> dict[str, Array]:
        bound, rng = functools.partial(energy, variables[0]), jax.random.key(0)
        of_one = lambda row: exact_score_matching(bound, rng, row[None])[0]
        with jax.default_matmul_precision("highest"):
            return {name: jax.lax.map(of_one, rows["image"])}

    return progress.held_out_density(measure, np.asarray(x), names=[name], batch_size=len(x))


def _scaled(objective: Objective, name: str) -> Objective:
    def scaled(network: Energy | Score, rng: Rng, x: Array) -> Array:
        return objective(network, rng, x) / expected_multiple(name, math.prod(x.shape[1:]))

    return scaled
