# SPDX-License-Identifier: Apache-2.0
"""NCSN by score matching in place of denoising: FD-SSM-VR, SSM-VR, ... at levels of noise.

Each image is noised to a random level sigma and the loss there is weighted by sigma^2. Networks,
ladders and annealed Langevin dynamics are those of Song & Ermon, arXiv:1907.05600, 2006.09011.

Source: Pang et al. 2020, arXiv:2007.03317, Section 5.5.
"""

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from scorejax import score_model
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.models.build import REFINENET_OPTIONS, build_refinenet
from scorejax.numerics import expand
from scorejax.objectives.finite_difference import repeat_rows
from scorejax.objectives.score_matching import annealed
from scorejax.objectives.training_loss import ExampleLoss
from scorejax.random import Rng, draw_rows, split
from scorejax.score_model import ScoreModel, noise_levels
from scorejax.score_model.noise_levels import Ladder
from scorejax.systems.fd_score_matching import training
from scorejax.train.optimizer import adam
from scorejax.train.system import System
from scorejax.typing import Array, NetworkFn, Params

KEYS = (
    *VIEW_OPTIONS, *REFINENET_OPTIONS, "model", "sigma_min", "sigma_max", "steps_per_level",
    "step_size", "denoise", "objective", "eps", "direction", "learning_rate",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*VIEW_DEFAULTS, *score_model.OPTIONS)
"""Keys that it may have."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    model = make_model(config)

    def row_losses(params: Params, rng: Rng, images: Array) -> Array:
        return model.example_loss(score_model.bind(model.network, (params, {})), rng, images)

    # These networks have no dropout: an example's whole key is the objective's.
    loss = training.make_loss(row_losses)
    return score_model.training_system(model, config)._replace(loss=loss)


def make_model(config: ConfigDict) -> ScoreModel:
    """The model of a config. Raises: ValueError for an impossible value."""
    data = ImageView.from_options(config)
    ladder = Ladder.from_config(config, rule=False)
    return ScoreModel(
        sde=ladder.sde,
        data=data,
        network=build_refinenet(config.model, config.image_size, config),
        example_loss=objective(config, ladder, data),
        tx=adam(config.learning_rate),
        **noise_levels.score_fields(ladder, config.model),
        **noise_levels.langevin_fields(ladder),
        **score_model.options(config),
    )


def objective(config: ConfigDict, ladder: Ladder, data: ImageView) -> ExampleLoss:
    """The config's objective at a random level of each image, weighted by sigma^2."""
    matching = training.make_score_objective(config, data.shape)
    sigmas = jnp.asarray(ladder.sigmas, jnp.float32)

    def losses(network: NetworkFn, rng: Rng, x: Array) -> Array:
        level_rng, rng = split(rng)
        draw = functools.partial(jax.random.randint, minval=0, maxval=len(sigmas))
        levels = draw_rows(draw, level_rng, x.shape[:1])

        def score(y: Array, sigma: Array) -> Array:
            output = network(y, repeat_rows(levels, len(y)))
            return output if config.model == "ncsn" else output / expand(sigma, y)

        return annealed(matching, score, rng, x, sigma=sigmas[levels])

    return losses
