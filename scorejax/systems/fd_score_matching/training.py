# SPDX-License-Identifier: Apache-2.0
"""What the experiments share: the objective of an energy by config, its loss, the optimiser.

Each objective is divided by its `expected_multiple`, so that its mean over directions is that of
score matching, or of denoising score matching, in full, and losses are of one size.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_known
from scorejax.data.source import padded_batches
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.objectives import finite_difference
from scorejax.objectives.directions import DIRECTIONS, Energy, Score, check_eps
from scorejax.objectives.score_matching import (
    ENERGY_OBJECTIVES,
    SCORE_OBJECTIVES,
    Objective,
    expected_multiple,
)
from scorejax.objectives.sliced import exact_score_matching
from scorejax.random import Rng, draw_rows, example_keys, split
from scorejax.report import Evaluation
from scorejax.train.optimizer import adam
from scorejax.train.state import TrainState
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
"""Which of the options an objective takes."""
MULTI_SCALE = ("sigma_min", "sigma_max", "target_sigma")


def maximum_likelihood(energy: Energy, rng: Rng, x: Array) -> Array:
    """The energy itself, of a density whose normaliser is in it."""
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
    """The objective of a config: "mle" only of `normalised` densities, "fd_mdsm" of others.

    An example of what the energy sees has that shape.

    Raises: ValueError for an unknown one, or an impossible step, noise level or direction.
    """
    options = objective_options(config, shape)
    known = {
        name: _scaled(
            functools.partial(objective, **{use: options[use] for use in USES[name]}), name
        )
        for name, objective in ENERGY_OBJECTIVES.items()
    }
    if normalised:
        return choose("objective", config.objective, known | {"mle": maximum_likelihood})
    require(config, MULTI_SCALE, lambda v: 0 < v < math.inf, "to be a positive number")
    along = {use: options[use] for use in USES["fd_ssm"]}
    levels = {name: config[name] for name in MULTI_SCALE}
    multi = functools.partial(multi_scale_fd_denoising, **levels, **along)
    return choose("objective", config.objective, known | {"fd_mdsm": _scaled(multi, "fd_dsm")})


def make_score_objective(config: ConfigDict, shape: Shape) -> ScoreObjective:
    """The objective of a score network of examples of that shape. Raises: as `make_objective`."""
    require_step(config, shape)
    objective = choose("objective", config.objective, SCORE_OBJECTIVES)
    options = {"direction": choose("direction", config.direction, DIRECTIONS)}
    if config.objective.startswith("fd"):
        options["eps"] = config.eps
    return _scaled(functools.partial(objective, **options), config.objective)


def objective_options(config: ConfigDict, shape: Shape) -> dict:
    """Those of `OPTIONS` but its name, checked. Raises: ValueError for what cannot be."""
    require_step(config, shape)
    require(config, ("sigma",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("num_directions",), lambda v: v >= 1, "to be at least 1")
    direction = choose("direction", config.direction, DIRECTIONS)
    return {name: config[name] for name in OPTIONS[1:]} | {"direction": direction}


def require_step(config: ConfigDict, shape: Shape) -> None:
    """Raises ValueError unless eps is positive and moves examples of size 1 in single precision."""
    require(config, ("eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    check_eps(config.eps, np.ones((1, *shape), np.float32))


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind clipping, whose rate falls to zero like a cosine if the config says so."""
    require(config, ("beta1", "beta2"), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    clip = config.grad_clip or None
    tx = adam(config.learning_rate, b1=config.beta1, b2=config.beta2, clip_norm=clip)
    if not config.cosine_decay:
        return tx
    fall = optax.cosine_decay_schedule(1.0, config.num_train_steps)
    return optax.chain(tx, optax.scale_by_schedule(fall))


def make_loss(row_losses: RowLosses) -> LossFn:
    """The batch mean of losses, every example drawing from its own key."""

    def loss(
        params: Params, state: TrainState, rng: PRNGKeyArray, batch: Batch
    ) -> tuple[Array, Aux]:
        losses = row_losses(params, example_keys(rng, batch), batch["image"])
        return jnp.mean(losses), Aux({}, state.model_state)

    return loss


def require_one_step(sampler: str, own: str, num_steps: int, nfe: int) -> None:
    """Raises ValueError for another sampler than a model's own, or for more than its one step."""
    require_known("sampler", sampler or own, (own,))
    if max(num_steps, nfe) > 1:
        raise ValueError(f"the sampler {own!r} draws in one step; got {max(num_steps, nfe)}")


def held_out_loss(losses: RowLosses, batches: list[Batch]) -> progress.Metric:
    """The mean loss of test images, as `progress.held_out_loss`."""
    losses = jax.jit(losses)
    return progress.held_out_loss(lambda variables, rng, x: losses(variables[0], rng, x), batches)


def first_images(batches: list[Batch], num: int | None = None) -> Array:
    """The first images of padded batches, all by default."""
    return jnp.concatenate([batch["image"][batch["mask"]] for batch in batches])[:num]


def held_out_batches(config: ConfigDict, view: ImageView) -> list[Batch]:
    """Test images as in training, with one draw of their noise, padded and masked."""
    noise, held_out = np.random.default_rng(0), view.stored("test", config.eval_examples)
    return [
        batch | {"image": view.as_trained(noise, batch["image"])}
        for batch in padded_batches(held_out, min(config.batch_size, len(held_out.label)))
    ]


def exact_metric(
    energy: Callable[[Params, Array], Array], x: Array, name: str = "score_matching"
) -> progress.Metric:
    """The score-matching loss by dense Hessians, one example after the other."""

    @jax.jit
    def losses(params: Params) -> Array:
        bound, rng = functools.partial(energy, params), jax.random.key(0)
        return jax.lax.map(lambda row: exact_score_matching(bound, rng, row[None])[0], x)

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        found = np.asarray(losses(variables[0]))
        return Evaluation(progress.summary(name, found[None]), {})

    return metric


def _scaled(objective: Objective, name: str) -> Objective:
    def scaled(network: Energy | Score, rng: Rng, x: Array) -> Array:
        return objective(network, rng, x) / expected_multiple(name, math.prod(x.shape[1:]))

    return scaled
