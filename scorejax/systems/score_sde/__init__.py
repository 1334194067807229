# SPDX-License-Identifier: Apache-2.0
"""Score-based generative modelling through stochastic differential equations.

Training is Eq. 7 of the paper, in continuous time, or the discrete losses that it generalises
(Eqs. 1 and 3); samples come from predictor-corrector chains (Alg. 1) or the probability-flow ODE
(Eq. 13), densities from the same ODE (Eq. 39). VP and sub-VP networks predict the noise, VE
networks sigma times the score.

Source: Song et al. 2021, arXiv:2011.13456.
"""

from ml_collections import ConfigDict

from scorejax.objectives import make_loss_fn
from scorejax.systems import System, make_init
from scorejax.systems.score_sde.control import completion, interpolation, measurement
from scorejax.systems.score_sde.evaluation import likelihood, make_evaluate, metrics
from scorejax.systems.score_sde.model import (
    KEYS,
    OBJECTIVES,
    Variables,
    bind,
    image_view,
    make_example_loss,
    make_network,
    make_optimizer,
    make_score_fn,
    make_sde,
    score_of,
)
from scorejax.systems.score_sde.sampling import SAMPLERS, sampler

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
    "score_of",
]


def build(config: ConfigDict) -> System:
    """Binds a config. Raises: ValueError for impossible values, FileNotFoundError without data."""
    sde, images, model = make_sde(config), image_view(config), make_network(config)
    return System(
        init=make_init(model, images.shape),
        loss=make_loss_fn(make_example_loss(config, sde), model.apply),
        tx=make_optimizer(config),
        source=images.training_source(config.batch_size),
        evaluate=make_evaluate(config),
    )
