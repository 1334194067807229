# SPDX-License-Identifier: Apache-2.0
"""What a config says of the score SDE: its SDE, network, objective and optimiser.

Each maker raises ValueError, one line, for values that cannot be.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from scorejax import parameterize
from scorejax.choices import choose, require, require_keys
from scorejax.data.view import ImageView
from scorejax.models.build import NCSNPP_OPTIONS, build_network
from scorejax.models.ncsnpp import NCSNpp
from scorejax.numerics import mean_except_batch
from scorejax.objectives import denoising
from scorejax.objectives.training_loss import ExampleLoss
from scorejax.schedules import geometric_sigmas
from scorejax.score_model import EVALUATION_OPTIONS, OPTIONS, ScoreModel, bind
from scorejax.sdes import SDE, get_sde
from scorejax.train.optimizer import adam
from scorejax.typing import NetworkFn, ScoreFn, Variables

SDES = ("vp", "subvp", "ve")
OBJECTIVES = {"denoising": SDES, "likelihood": SDES, "ddpm": ("vp",), "smld": ("ve",)}
"""The objectives, and the SDEs that each is for."""
REDUCTIONS = {"mean": mean_except_batch, "half_sum": denoising.half_sum}
KEYS = (
    *(field.name for field in dataclasses.fields(ImageView)), *NCSNPP_OPTIONS, "model",
    "sde", "beta_min", "beta_max", "sigma_min", "sigma_max", "objective", "num_scales", "reduction",
    "learning_rate", "beta1", "adam_eps", "warmup", "grad_clip",
    *OPTIONS, *EVALUATION_OPTIONS,
)  # fmt: skip
"""What is read of a config, beside `system` and what the training loop reads."""


def image_view(config: ConfigDict) -> ImageView:
    """The data of a config. Raises: ValueError for an unknown set or an impossible size."""
    return ImageView.from_options(config)


def make_sde(config: ConfigDict) -> SDE:
    """Raises: ValueError unless it exists, has positive noise and suits the objective."""
    require_keys(config, KEYS)
    sde = get_sde(config.sde, config.to_dict())
    suited = sorted(choose("objective", config.objective, OBJECTIVES))
    if config.sde not in suited:
        raise ValueError(
            f"objective {config.objective!r} needs sde={suited[0]!r}; got {config.sde!r}"
        )
    return sde


def make_network(config: ConfigDict) -> NCSNpp:
    """Raises: ValueError for a network that cannot be, or not for these images or labels."""
    if config.embedding_type == "fourier" and config.objective in ("ddpm", "smld"):
        raise ValueError(
            "embedding_type 'fourier' takes the logarithm of the label, which is 0 at one end of "
            f"objective {config.objective!r}; take embedding_type 'positional'"
        )
    return build_network(config.model, config.image_size, config)


def make_score_fn(config: ConfigDict, sde: SDE, network: NetworkFn) -> ScoreFn:
    """The score in the convention of the objective. Source: the paper, Appendix C."""
    if config.objective == "ddpm":
        return parameterize.discrete_noise_prediction(sde, network, config.num_scales)
    if config.objective == "smld":
        divided = _divided_by_level(config, network)
        return parameterize.discrete_sigma_conditioned(sde, divided, config.num_scales)
    if config.sde == "ve":
        return parameterize.sigma_conditioned(sde, parameterize.divided_by_sigma(network))
    return parameterize.noise_prediction(sde, network)


def score_of(config: ConfigDict) -> Callable[[Variables], ScoreFn]:
    """variables -> the score that a config's network has with them, as evaluation uses it.

    Raises: as make_sde and make_network.
    """
    sde, model = make_sde(config), make_network(config)
    return lambda variables: make_score_fn(config, sde, bind(model, variables))


def score_model(config: ConfigDict) -> ScoreModel:
    """What a config's score draws and measures with. Raises: as make_sde and make_network."""
    return ScoreModel(make_sde(config), image_view(config), score_of(config), config.to_dict())


def make_example_loss(config: ConfigDict, sde: SDE) -> ExampleLoss:
    """The objective: Eq. 7 with the weight std^2 or g^2, or its ancestors Eq. 3 and Eq. 1."""
    require(config, ("num_scales",), lambda v: v >= 2, "to be at least 2")
    options: dict[str, Any] = {"reduction": choose("reduction", config.reduction, REDUCTIONS)}
    if config.objective == "ddpm":
        options |= {"num_scales": config.num_scales}
        return lambda network, rng, x: denoising.ddpm_loss(network, sde, rng, x, **options)
    if config.objective == "smld":
        options |= {"num_scales": config.num_scales}
        return lambda network, rng, x: denoising.smld_loss(
            _divided_by_level(config, network), sde, rng, x, **options
        )
    if config.objective == "likelihood":
        options |= {"time_sampler": denoising.likelihood_times}
        options |= {"weighting": denoising.likelihood_weighting}
    return lambda network, rng, x: denoising.denoising_score_matching(
        make_score_fn(config, sde, network), sde, rng, x, **options
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam behind warm-up and clipping. Raises: ValueError for impossible values."""
    require(config, ("beta1",), lambda v: 0 <= v < 1, "to lie in [0, 1)")
    require(config, ("adam_eps",), lambda v: 0 < v < math.inf, "to be a positive number")
    require(config, ("grad_clip",), lambda v: v >= 0, "to be positive, or 0 for none")
    return adam(
        config.learning_rate,
        b1=config.beta1,
        eps=config.adam_eps,
        warmup=config.warmup,
        clip_norm=config.grad_clip or None,
    )


def _divided_by_level(config: ConfigDict, network: NetworkFn) -> NetworkFn:
    sigmas = geometric_sigmas(config.sigma_min, config.sigma_max, config.num_scales)
    return parameterize.divided_by_level_sigma(network, jnp.asarray(sigmas, jnp.float32))
