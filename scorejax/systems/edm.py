# SPDX-License-Identifier: Apache-2.0
"""EDM: denoisers whose networks see and predict numbers of unit size, drawn in 35 evaluations.

Training asks for the data back at a random noise level (Eq. 2). `preconditioner` names a column of
Table 1: how the network becomes a denoiser, at which levels it learns, and with which weights. The
denoiser is a score along the VE SDE from sigma_min to sigma_max, so that the samplers and the
likelihood of score SDEs serve as well; Heun's method (Algorithm 2) is the default. Class labels
and augmentation in training are left out.

Source: Karras et al. 2022, arXiv:2206.00364.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from scorejax import preconditioning, score_model
from scorejax.choices import choose, require, require_keys
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.models.build import SONG_UNET_OPTIONS, build_song_unet
from scorejax.objectives import denoiser
from scorejax.samplers import few_step
from scorejax.score_model import ScoreModel, sampling
from scorejax.sdes import VESDE
from scorejax.train.optimizer import ADAM_OPTIONS, adam_from_config
from scorejax.train.system import System
from scorejax.typing import Array, Variables

KEYS = (
    *VIEW_OPTIONS, *SONG_UNET_OPTIONS, "preconditioner", "sigma_data", "level_mean", "level_std",
    "sigma_min", "sigma_max", "learning_rate",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*VIEW_DEFAULTS, *score_model.OPTIONS, *ADAM_OPTIONS)
"""Keys that it may have."""


class Training(NamedTuple):
    """A column of the paper's Table 1."""

    coefficients: preconditioning.Preconditioner
    levels: denoiser.LevelSampler
    weighting: denoiser.LevelWeighting


def _edm(config: ConfigDict) -> Training:
    spread = {"mean": config.level_mean, "std": config.level_std}
    return Training(
        functools.partial(preconditioning.edm_coefficients, sigma_data=config.sigma_data),
        functools.partial(denoiser.log_normal_levels, **spread),
        functools.partial(denoiser.edm_weighting, sigma_data=config.sigma_data),
    )


TRAININGS: dict[str, Callable[[ConfigDict], Training]] = {
    "edm": _edm,
    "vp": lambda _: Training(
        preconditioning.vp_coefficients, denoiser.vp_levels, denoiser.noise_weighting
    ),
    "ve": lambda _: Training(
        preconditioning.ve_coefficients, denoiser.ve_levels, denoiser.noise_weighting
    ),
}


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return score_model.training_system(make_model(config), config)


def make_model(config: ConfigDict) -> ScoreModel:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    require(config, ("centered",), bool, "to be True: these networks see images in [-1, 1]")
    require(config, ("sigma_data", "level_std"), lambda v: 0 < v < math.inf, "to be positive")
    training = choose("preconditioner", config.preconditioner, TRAININGS)(config)
    data, sde = ImageView.from_options(config), VESDE(config.sigma_min, config.sigma_max)
    denoiser_of = lambda network: preconditioning.preconditioned(network, training.coefficients)
    return ScoreModel(
        sde=sde,
        data=data,
        network=build_song_unet(config.image_size, config).clone(out_channels=data.shape[-1]),
        to_score=lambda network: preconditioning.denoiser_to_score_fn(sde, denoiser_of(network)),
        example_loss=lambda network, rng, x: denoiser.denoiser_matching(
            denoiser_of(network), rng, x, levels=training.levels, weighting=training.weighting
        ),
        tx=adam_from_config(config),
        samplers=sampling.first("heun"),
        trajectory=drawn_by_heun,
        **score_model.options(config),
    )


def drawn_by_heun(model: ScoreModel) -> sampling.Trajectory:
    """The end of Heun's method alone: its 18 steps are too few to show a way."""

    def trajectory(variables: Variables, rngs: Array) -> Array:
        score_fn, denoise = model.score(variables), model.chain.denoise
        shape = (len(rngs), *model.data.shape)
        x = few_step.heun(rngs, score_fn, shape, sde=model.sde, denoise=denoise).x
        return model.data.to_data(x)[None]

    return trajectory
