# SPDX-License-Identifier: Apache-2.0
"""NCSN by score matching in place of denoising: FD-SSM-VR, SSM-VR, ... at levels of noise.

Each image is noised to a random level sigma and the loss there is weighted by sigma^2. Networks,
ladders and annealed Langevin dynamics are those of Song & Ermon, arXiv:1907.05600, 2006.09011.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.5.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from scorejax import systems
from scorejax.choices import require
from scorejax.data.source import BatchSource
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.models.build import REFINENET_OPTIONS, build_refinenet
from scorejax.models.refinenet import NCSNv2
from scorejax.numerics import expand
from scorejax.objectives.finite_difference import repeat_rows
from scorejax.objectives.score_matching import annealed
from scorejax.random import Rng, draw_rows, split
from scorejax.samplers import langevin
from scorejax.schedules import geometric_sigmas
from scorejax.score_model import (
    EVALUATION_OPTIONS,
    OPTIONS,
    ScoreModel,
    evaluation,
    noise_levels,
)
from scorejax.systems.fd_score_matching import training
from scorejax.train.optimizer import adam
from scorejax.typing import Array, LossFn, Params

KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *REFINENET_OPTIONS, "model",
    "sigma_min", "sigma_max", "steps_per_level", "step_size", "objective", "eps", "direction",
    "learning_rate", *OPTIONS, *EVALUATION_OPTIONS,
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    return ImageView.from_options(config)


def make_network(config: ConfigDict) -> NCSNv2:
    """Raises: ValueError for a network that cannot be, or not for these images."""
    return build_refinenet(config.model, config.image_size, config)


def make_init(config: ConfigDict) -> Callable:
    """rng -> (params, model_state). Raises: as the network."""
    return systems.make_init(make_network(config), image_view(config).shape, ())


def make_source(config: ConfigDict) -> BatchSource:
    """Training batches. Raises: as the data set."""
    return image_view(config).training_source(config.batch_size)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam at a constant rate. Raises: ValueError for an impossible one."""
    return adam(config.learning_rate)


def make_loss(config: ConfigDict) -> LossFn:
    """The config's objective at random levels, as a training loss."""
    return training.make_loss(row_losses(config))


def row_losses(config: ConfigDict) -> training.RowLosses:
    """Losses (params, rng, images) -> (b,). Raises: ValueError for what cannot be."""
    objective = training.make_score_objective(config, image_view(config).shape)
    model, sigmas = make_network(config), jnp.asarray(ladder(config), jnp.float32)

    def losses(params: Params, rng: Rng, x: Array) -> Array:
        level_rng, rng = split(rng)
        draw = functools.partial(jax.random.randint, minval=0, maxval=len(sigmas))
        levels = draw_rows(draw, level_rng, x.shape[:1])

        def score(y: Array, sigma: Array) -> Array:
            output = model.apply({"params": params}, y, repeat_rows(levels, len(y)))
            return output if config.model == "ncsn" else output / expand(sigma, y)

        return annealed(objective, score, rng, x, sigma=sigmas[levels])

    return losses


def ladder(config: ConfigDict):
    """The levels, the noisiest first. Raises: ValueError for a ladder that cannot be."""
    return geometric_sigmas(config.sigma_min, config.sigma_max, config.num_scales)


def score_model(config: ConfigDict) -> ScoreModel:
    """What the score draws and measures with, along the ladder's SDE."""
    return noise_levels.score_model(make_network(config), image_view(config), config.to_dict())


def chain(config: ConfigDict, steps_per_level: int = 0) -> dict:
    """Options of annealed Langevin dynamics, perhaps with another number of steps per level.

    Raises: ValueError if it would diverge.
    """
    require(config, ("step_size",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("steps_per_level",), lambda v: v >= 1, "to be at least 1")
    sigmas = ladder(config)
    langevin.require_stable(sigmas, config.step_size)
    num_steps = steps_per_level or config.steps_per_level
    steps = {"step_size": config.step_size, "steps_per_level": num_steps}
    return {"sigmas": sigmas, "denoise": config.denoise} | steps


def sampler(config: ConfigDict, name: str, **options) -> Callable:
    """As `noise_levels.sampler`."""
    return noise_levels.sampler(
        score_model(config), functools.partial(chain, config), name, **options
    )


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """As `evaluation.likelihood`, along the probability flow of the ladder's SDE."""
    return evaluation.likelihood(score_model(config), exact=exact)


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """As `evaluation.metrics`: held-out loss, bits/dim, and frames of the annealed chain."""
    model, losses = score_model(config), row_losses(config)
    trajectory = noise_levels.trajectory(model, functools.partial(chain, config))
    by_rows = lambda variables, rng, x: losses(variables[0], rng, x)
    return evaluation.metrics(model, by_rows, trajectory, sampler(config, ""))
