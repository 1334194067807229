# SPDX-License-Identifier: Apache-2.0
"""Score-based generative modelling through stochastic differential equations.

Training is Eq. 7 of the paper, in continuous time, or the discrete losses that it generalises
(Eqs. 1 and 3); samples come from predictor-corrector chains (Alg. 1) or the probability-flow ODE
(Eq. 13), densities from the same ODE (Eq. 39). VP and sub-VP networks predict the noise, VE
networks sigma times the score.

Source: Song et al. 2021, arXiv:2011.13456.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from scorejax.evaluate import progress
from scorejax.linear_operators import LinearOperator
from scorejax.objectives.training_loss import make_loss_fn
from scorejax.score_model import bind, control, evaluation, sampling
from scorejax.score_model.control import measurement
from scorejax.score_model.sampling import SAMPLERS
from scorejax.systems import System, make_init
from scorejax.systems.score_sde.model import (
    KEYS,
    OBJECTIVES,
    image_view,
    make_example_loss,
    make_network,
    make_optimizer,
    make_score_fn,
    make_sde,
    score_model,
    score_of,
)
from scorejax.typing import Array, PRNGKeyArray, Variables

__all__ = [
    "KEYS",
    "OBJECTIVES",
    "SAMPLERS",
    "Variables",
    "bind",
    "build",
    "completion",
    "image_view",
    "interpolation",
    "likelihood",
    "make_example_loss",
    "make_network",
    "make_optimizer",
    "make_score_fn",
    "make_sde",
    "measurement",
    "metrics",
    "sampler",
    "score_model",
    "score_of",
]


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    sde, images, model = make_sde(config), image_view(config), make_network(config)
    return System(
        init=make_init(model, images.shape, ()),
        loss=make_loss_fn(make_example_loss(config, sde), model.apply),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=evaluation.make_evaluate(metrics(config), config.best_metric),
    )


def metrics(config: ConfigDict) -> dict[str, progress.Metric]:
    """As `evaluation.metrics`."""
    model, example_loss = make_network(config), make_example_loss(config, make_sde(config))

    def row_losses(variables: Variables, rng: PRNGKeyArray, x: Array) -> Array:
        return example_loss(bind(model, variables), rng, x)

    return evaluation.metrics(score_model(config), row_losses)


def sampler(config: ConfigDict, name: str, **options: Any) -> Callable:
    """As `sampling.sampler`."""
    return sampling.sampler(score_model(config), name, **options)


def likelihood(config: ConfigDict, *, exact: bool = False) -> Callable:
    """As `evaluation.likelihood`."""
    return evaluation.likelihood(score_model(config), exact=exact)


def completion(config: ConfigDict, operator: LinearOperator, *, num_steps: int = 0) -> Callable:
    """As `control.completion`."""
    return control.completion(score_model(config), operator, num_steps=num_steps)


def interpolation(config: ConfigDict, num: int) -> Callable:
    """As `control.interpolation`."""
    return control.interpolation(score_model(config), num)
