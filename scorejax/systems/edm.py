# SPDX-License-Identifier: Apache-2.0
"""EDM: denoisers whose networks see and predict numbers of unit size, drawn in 35 evaluations.

Training asks for the data back at a random noise level (Eq. 2); `preconditioner` says how the
network becomes a denoiser, from which levels it learns and with which weights: those of EDM, or
those under which the networks of the VP and VE SDEs were trained (Table 1). The denoiser is a score
along the VE SDE from sigma_min to sigma_max, so that the samplers and the likelihood of score SDEs
serve as well; Heun's method (Algorithm 2) is the one unless another is asked for. Networks with
labels of classes, and augmentation in training, are left out.

Source: Karras et al. 2022, arXiv:2206.00364.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys
from scorejax.data.view import ImageView
from scorejax.evaluate import progress
from scorejax.linear_operators import LinearOperator
from scorejax.models.build import SONG_UNET_OPTIONS, build_song_unet
from scorejax.models.songunet import SongUNet
from scorejax.objectives import denoiser
from scorejax.objectives.training_loss import ExampleLoss, make_loss_fn
from scorejax.preconditioning import (
    Preconditioner,
    denoiser_to_score_fn,
    edm_coefficients,
    preconditioned,
    ve_coefficients,
    vp_coefficients,
)
from scorejax.samplers import few_step
from scorejax.score_model import (
    EVALUATION_OPTIONS,
    OPTIONS,
    ScoreModel,
    bind,
    control,
    evaluation,
    sampling,
)
from scorejax.score_model.control import measurement
from scorejax.sdes import VESDE
from scorejax.systems import System, make_init
from scorejax.train.optimizer import adam
from scorejax.typing import Array, PRNGKeyArray, Variables

__all__ = [
    "KEYS",
    "build",
    "completion",
    "image_view",
    "interpolation",
    "likelihood",
    "make_example_loss",
    "make_network",
    "make_optimizer",
    "measurement",
    "metrics",
    "sampler",
    "score_model",
]

KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *SONG_UNET_OPTIONS,
    "preconditioner", "sigma_data", "level_mean", "level_std", "sigma_min", "sigma_max",
    "learning_rate", "beta1", "adam_eps", "warmup", *OPTIONS, *EVALUATION_OPTIONS,
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


class Training(NamedTuple):
    """A column of the paper's Table 1."""

    coefficients: Preconditioner
    levels: denoiser.LevelSampler
    weighting: denoiser.LevelWeighting


def _edm(config: ConfigDict) -> Training:
    spread = {"mean": config.level_mean, "std": config.level_std}
    return Training(
        functools.partial(edm_coefficients, sigma_data=config.sigma_data),
        functools.partial(denoiser.log_normal_levels, **spread),
        functools.partial(denoiser.edm_weighting, sigma_data=config.sigma_data),
    )


TRAININGS: dict[str, Callable[[ConfigDict], Training]] = {
    "edm": _edm,
    "vp": lambda _: Training(vp_coefficients, denoiser.vp_levels, denoiser.noise_weighting),
    "ve": lambda _: Training(ve_coefficients, denoiser.ve_levels, denoiser.noise_weighting),
}


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    found, images, model = metrics(config), image_view(config), make_network(config)
    return System(
        init=make_init(model, images.shape, ()),
        loss=make_loss_fn(make_example_loss(config), model.apply),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=evaluation.make_evaluate(found, config.best_metric),
    )


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    require(config, ("centered",), bool, "to be True: these networks see images in [-1, 1]")
    return ImageView.from_options(config)


def make_network(config: ConfigDict) -> SongUNet:
    """Raises: ValueError for a network that cannot be, or not for these images."""
    channels = image_view(config).shape[-1]
    return build_song_unet(config.image_size, config).clone(out_channels=channels)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind warm-up. Raises: ValueError for impossible values."""
    require(config, ("beta1",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    options = {"b1": config.beta1, "eps": config.adam_eps, "warmup": config.warmup}
    return adam(config.learning_rate, **options)


def training(config: ConfigDict) -> Training:
    """How a config's network becomes a denoiser and learns. Raises: ValueError for what cannot."""
    require_keys(config, KEYS)
    require(config, ("sigma_data", "level_std"), lambda v: 0 < v < math.inf, "to be positive")
    return choose("preconditioner", config.preconditioner, TRAININGS)(config)


def make_example_loss(config: ConfigDict) -> ExampleLoss:
    """The loss (network, rng, x) -> (b,), a mean over pixels. Source: the paper, Eq. 2."""
    coefficients, levels, weighting = training(config)
    return lambda network, rng, x: denoiser.denoiser_matching(
        preconditioned(network, coefficients), rng, x, levels=levels, weighting=weighting
    )


def score_model(config: ConfigDict) -> ScoreModel:
    """What a config's score draws and measures with. Raises: ValueError for what cannot be."""
    coefficients, network = training(config).coefficients, make_network(config)
    sde = VESDE(config.sigma_min, config.sigma_max)
    score = lambda variables: denoiser_to_score_fn(
        sde, preconditioned(bind(network, variables), coefficients)
    )
    return ScoreModel(sde, image_view(config), score, config.to_dict())


def sampler(config: ConfigDict, name: str, **options: Any) -> Callable:
    """As `sampling.sampler`, but Heun's method, in 18 steps, is the first."""
    ordered = {"heun": sampling.SAMPLERS["heun"], **sampling.SAMPLERS}
    return sampling.sampler(score_model(config), name, samplers=ordered, **options)


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """As `evaluation.likelihood`."""
    return evaluation.likelihood(score_model(config), exact=exact)


def completion(config: ConfigDict, operator: LinearOperator, *, num_steps: int = 0) -> Callable:
    """As `control.completion`."""
    return control.completion(score_model(config), operator, num_steps=num_steps)


def interpolation(config: ConfigDict, num: int) -> Callable:
    """As `control.interpolation`."""
    return control.interpolation(score_model(config), num)


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """As `evaluation.metrics`; samples are by Heun's method."""
    model, network = score_model(config), make_network(config)
    example_loss = make_example_loss(config)
    shape = (config.eval_samples, *model.images.shape)

    def row_losses(variables: Variables, rng: PRNGKeyArray, x: Array) -> Array:
        return example_loss(bind(network, variables), rng, x)

    def drawn(variables: Variables, rng: PRNGKeyArray) -> Array:
        x = few_step.heun(rng, model.score(variables), shape, sde=model.sde).x
        return model.images.to_unit(x)[None]

    return evaluation.metrics(model, row_losses, drawn, sampler(config, ""))
