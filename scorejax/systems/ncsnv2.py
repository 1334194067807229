# SPDX-License-Identifier: Apache-2.0
"""NCSNv2: annealed Langevin dynamics down a ladder of noise levels chosen by rule.

The loss is denoising score matching at a random level (Eq. 2, weight sigma^2), samples come from
Algorithm 1. Of the five techniques, 1, 2 and 4 choose the ladder and the step size
(`scorejax.schedules`; `launch.evaluate --metrics=ladder` says what they choose for a data set), 3
divides the network's output by sigma, 5 is the moving average that training keeps. The ladder is a
VE SDE seen at its levels, so that the samplers and the likelihood of score SDEs serve as well.

Source: Song & Ermon 2020, arXiv:2006.09011; model "ncsn" is that of 2019, arXiv:1907.05600.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from scorejax import parameterize
from scorejax.choices import require, require_keys
from scorejax.data.view import ImageView
from scorejax.evaluate import ladder, progress
from scorejax.linear_operators import LinearOperator
from scorejax.models.build import REFINENET_OPTIONS, build_refinenet
from scorejax.models.refinenet import NCSNv2
from scorejax.objectives import denoising
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.report import Evaluation
from scorejax.samplers import langevin
from scorejax.schedules import geometric_sigmas, langevin_step_size
from scorejax.score_model import (
    EVALUATION_OPTIONS,
    OPTIONS,
    ScoreModel,
    bind,
    control,
    evaluation,
    noise_levels,
)
from scorejax.score_model.control import measurement
from scorejax.sdes import VESDE
from scorejax.systems import System, make_init
from scorejax.train.optimizer import adam
from scorejax.typing import Array, NetworkFn, PRNGKeyArray, Variables

__all__ = [
    "KEYS",
    "build",
    "completion",
    "data_metrics",
    "image_view",
    "interpolation",
    "likelihood",
    "make_network",
    "make_optimizer",
    "measurement",
    "metrics",
    "sampler",
    "score_model",
]

KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *REFINENET_OPTIONS, "model",
    "sigma_min", "sigma_max", "steps_per_level", "step_size", "learning_rate", "beta1", "adam_eps",
    *OPTIONS, *EVALUATION_OPTIONS,
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""
WATCHED = ("loss", "bits_per_dim", "samples", "frechet")
"""The metrics that training looks at."""
NUM_ROWS, NUM_INTERPOLATED = 6, 10
MANY = 20_000


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    found = metrics(config)  # First: it checks the ladder before anything is computed of it.
    images, model = image_view(config), make_network(config)
    network_loss = make_network_loss(config)
    watched = {name: found[name] for name in WATCHED if name in found}
    return System(
        init=make_init(model, images.shape, ()),
        loss=make_loss_fn(network_loss, model.apply),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=evaluation.make_evaluate(watched, config.best_metric),
    )


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    return ImageView.from_options(config)


def make_network(config: ConfigDict) -> NCSNv2:
    """Raises: ValueError for a network that cannot be, or not for these images."""
    return build_refinenet(config.model, config.image_size, config)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam at a constant rate. Raises: ValueError for impossible values."""
    require(config, ("beta1",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    return adam(config.learning_rate, b1=config.beta1, eps=config.adam_eps)


def score_model(config: ConfigDict) -> ScoreModel:
    """What a config's score draws and measures with. Raises: ValueError for what cannot be."""
    require_keys(config, KEYS)
    chain_options(config)
    return noise_levels.score_model(make_network(config), image_view(config), config.to_dict())


def chain_options(config: ConfigDict, steps_per_level: int = 0) -> dict[str, Any]:
    """Of the annealed Langevin chain, or of one with another number of steps per level.

    The step size is the config's for its own number of steps, else what technique 4 chooses.
    Raises: ValueError for a ladder that cannot be, or a step size at which the chain diverges.
    """
    require(config, ("step_size",), lambda v: 0 <= v < math.inf, "to be positive, or 0 for a rule")
    require(config, ("steps_per_level",), lambda v: v >= 1, "to be at least 1")
    sigmas = geometric_sigmas(config.sigma_min, config.sigma_max, config.num_scales)
    num_steps, step_size = steps_per_level or config.steps_per_level, config.step_size
    if not step_size or num_steps != config.steps_per_level:
        step_size = langevin_step_size(sigmas[0] / sigmas[1], num_steps) * config.sigma_min**2
    langevin.require_stable(sigmas, step_size)
    chain = {"sigmas": sigmas, "step_size": step_size, "steps_per_level": num_steps}
    return chain | {"denoise": config.denoise}


def sampler(config: ConfigDict, name: str, **options: Any) -> Callable:
    """As `noise_levels.sampler`."""
    chain = functools.partial(chain_options, config)
    return noise_levels.sampler(score_model(config), chain, name, **options)


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """As `evaluation.likelihood`, along the probability flow of the ladder's SDE."""
    return evaluation.likelihood(score_model(config), exact=exact)


def completion(config: ConfigDict, operator: LinearOperator, *, num_steps: int = 0) -> Callable:
    """As `control.completion`, but by annealed Langevin dynamics, in the steps of the ladder.

    Raises: ValueError for another number of steps.
    """
    if num_steps:
        raise ValueError(
            f"num_steps={num_steps} is for chains of score SDEs; the ladder of this run has "
            f"{config.steps_per_level} steps at each of {config.num_scales} levels"
        )
    model, options = score_model(config), chain_options(config)

    def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        x, rng = rows["image"], rows["rng"][0]
        y, score_fn = operator.forward(x), noise_levels.by_sigma(model, variables)
        drawn = langevin.sample_given(rng, score_fn, x.shape, operator=operator, y=y, **options)
        measured = model.images.to_unit(operator.pinv(y))
        return {"measured": measured, "image": model.images.to_unit(drawn.x)}

    return complete


def interpolation(config: ConfigDict, num: int) -> Callable:
    """As `control.interpolation`; the paper's own, of noise, is the metric "interpolation"."""
    return control.interpolation(score_model(config), num)


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """As `evaluation.metrics`, and the norms along a chain, and rows of interpolated noise."""
    model, network, loss = score_model(config), make_network(config), make_network_loss(config)
    row_losses = lambda variables, rng, x: loss(bind(network, variables), rng, x)
    trajectory = noise_levels.trajectory(model, functools.partial(chain_options, config))
    found = evaluation.metrics(model, row_losses, trajectory, sampler(config, ""))
    if config.eval_samples:
        found["langevin"] = _langevin_metric(config, model)
        found["interpolation"] = _interpolation_metric(config, model)
    return found


def _langevin_metric(config: ConfigDict, model: ScoreModel) -> progress.Metric:
    """Norms along the chain, as curves over the levels."""
    shape, options = (config.eval_samples, *model.images.shape), chain_options(config)

    @jax.jit
    def trace(variables: Variables, rng: PRNGKeyArray) -> langevin.Trace:
        score_fn = noise_levels.by_sigma(model, variables)
        return langevin.annealed_langevin_trace(rng, score_fn, shape, **options)[1]

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures  # A second of matplotlib, once it is needed.

        found = jax.device_get(trace(variables, rng))
        levels = np.arange(1, config.num_scales + 1)
        curves = {"|score| sigma / sqrt(d)": found.score_norm, "signal to noise": found.snr}
        picture = pictures.curve_picture(levels, curves, xlabel="level")
        ends = {"first_level": 0, "last_level": -1}
        scalars = {f"score_norm_{name}": float(found.score_norm[i]) for name, i in ends.items()}
        return Evaluation(scalars, {"langevin": picture})

    return metric


def _interpolation_metric(config: ConfigDict, model: ScoreModel) -> progress.Metric:
    """Rows of samples whose noise goes from one stream to another, as a picture."""
    shape, options = (NUM_ROWS, *model.images.shape), chain_options(config)

    @jax.jit
    def rows(variables: Variables, rng: PRNGKeyArray) -> Array:
        score_fn = noise_levels.by_sigma(model, variables)
        drawn = langevin.interpolate(rng, score_fn, shape, NUM_INTERPOLATED, **options)
        return model.images.to_unit(drawn.x.reshape(-1, *shape[1:]))

    def metric(rng: PRNGKeyArray, variables: Variables) -> Evaluation:
        from scorejax.evaluate import pictures

        grid = pictures.image_grid(rows(variables, rng), num_columns=NUM_INTERPOLATED)
        return Evaluation({}, {"interpolation": grid})

    return metric


def data_metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """What can be said of a data set before training: "ladder", what the techniques choose.

    Of a set too large for memory it looks at the first `MANY` images.
    """
    images = image_view(config)
    stored = images.streamed("train")

    def ladder_metric(rng: PRNGKeyArray, variables: Any) -> Evaluation:
        some = stored if isinstance(stored, np.ndarray) else stored[range(min(len(stored), MANY))]
        return ladder.ladder_report(
            rng,
            images.as_trained(np.random.default_rng(0), some),
            sigma_min=config.sigma_min,
            steps_per_level=config.steps_per_level,
            flips=config.random_flip,
        )

    return {"ladder": ladder_metric}


def make_network_loss(config: ConfigDict) -> Callable:
    """The loss (network, rng, x) -> (b,). Source: the paper, Eq. 2."""
    sde, num_scales = VESDE(config.sigma_min, config.sigma_max), config.num_scales
    sigmas = jnp.asarray(geometric_sigmas(sde.sigma_min, sde.sigma_max, num_scales), jnp.float32)

    def loss(network: NetworkFn, rng: PRNGKeyArray, x: Array) -> Array:
        if config.model != "ncsn":
            network = parameterize.divided_by_level_sigma(network, sigmas)
        return denoising.smld_loss(network, sde, rng, x, num_scales=num_scales)

    return loss
