# SPDX-License-Identifier: Apache-2.0
"""NCSNv2: annealed Langevin dynamics down a ladder of noise levels chosen by rule.

The loss is denoising score matching at a random level (Eq. 2, weight sigma^2), samples come from
Algorithm 1. Of the five techniques, 1, 2 and 4 choose the ladder and the step size
(`scorejax.schedules`; `launch.evaluate --metrics=ladder` reports their choice for a data set), 3
divides the network's output by sigma, 5 is the moving average that training keeps. The ladder is a
VE SDE seen at its levels, so that the samplers and the likelihood of score SDEs serve as well.

Source: Song & Ermon 2020, arXiv:2006.09011; model "ncsn" is that of 2019, arXiv:1907.05600.
"""

import dataclasses
import functools

import jax.numpy as jnp
from ml_collections import ConfigDict

from scorejax import parameterize, score_model
from scorejax.choices import require_keys
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.evaluate.progress import Metrics
from scorejax.models.build import REFINENET_OPTIONS, build_refinenet
from scorejax.objectives import denoising
from scorejax.objectives.training_loss import ExampleLoss
from scorejax.score_model import ScoreModel, ladder_metrics, noise_levels
from scorejax.score_model.noise_levels import Ladder
from scorejax.train.optimizer import ADAM_OPTIONS, adam_from_config
from scorejax.train.system import System
from scorejax.typing import Array, NetworkFn, PRNGKeyArray

KEYS = (
    *VIEW_OPTIONS, *REFINENET_OPTIONS, "model", "sigma_min", "sigma_max", "steps_per_level",
    "step_size", "denoise", "learning_rate",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*VIEW_DEFAULTS, *score_model.OPTIONS, *ADAM_OPTIONS)
"""Keys that it may have."""


@dataclasses.dataclass(frozen=True, eq=False)
class NCSNv2Model(ScoreModel):
    """A score model that also reports the ladder that the techniques choose for its data."""

    ladder: Ladder | None = None

    def data_metrics(self) -> Metrics:
        """ "ladder": what techniques 1, 2 and 4 choose for the training images."""
        return {"ladder": functools.partial(ladder_metrics.chosen_ladder, self.data, self.ladder)}


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return score_model.training_system(make_model(config), config)


def make_model(config: ConfigDict) -> NCSNv2Model:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    ladder = Ladder.from_config(config)
    return NCSNv2Model(
        sde=ladder.sde,
        data=ImageView.from_options(config),
        network=build_refinenet(config.model, config.image_size, config),
        example_loss=objective(ladder, config.model),
        tx=adam_from_config(config),
        further_metrics=functools.partial(ladder_metrics.along_chain, ladder),
        ladder=ladder,
        **noise_levels.score_fields(ladder, config.model),
        **noise_levels.langevin_fields(ladder),
        **score_model.options(config),
    )


def objective(ladder: Ladder, model: str) -> ExampleLoss:
    """Eq. 2; but for "ncsn", the network's output is divided by sigma (technique 3)."""

    def loss(network: NetworkFn, rng: PRNGKeyArray, x: Array) -> Array:
        if model != "ncsn":
            sigmas = jnp.asarray(ladder.sigmas, jnp.float32)
            network = parameterize.divided_by_level_sigma(network, sigmas)
        return denoising.smld_loss(network, ladder.sde, rng, x, num_scales=ladder.num_scales)

    return loss
