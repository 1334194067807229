# SPDX-License-Identifier: Apache-2.0
"""Score-based generative modelling through stochastic differential equations.

Training is Eq. 7 of the paper, in continuous time, or the discrete losses that it generalises
(Eqs. 1 and 3); samples come from predictor-corrector chains (Alg. 1) or the probability-flow ODE
(Eq. 13), densities from the same ODE (Eq. 39). VP and sub-VP networks predict the noise, VE
networks sigma times the score (Appendix C).

Source: Song et al. 2021, arXiv:2011.13456.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from scorejax import parameterize, score_model
from scorejax.choices import choose, require, require_keys
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, ImageView
from scorejax.models.build import NCSNPP_OPTIONS, RECURRENT_OPTIONS, build_network
from scorejax.numerics import mean_except_batch
from scorejax.objectives import denoising
from scorejax.objectives.training_loss import ExampleLoss
from scorejax.schedules import geometric_sigmas
from scorejax.score_model import ScoreModel
from scorejax.score_model.noise_levels import numbered_levels, sigma_times_score
from scorejax.sdes import SDE, get_sde
from scorejax.train.optimizer import ADAM_OPTIONS, adam_from_config
from scorejax.train.system import System
from scorejax.typing import NetworkFn, ScoreFn

SDES = ("vp", "subvp", "ve")
OBJECTIVES = {"denoising": SDES, "likelihood": SDES, "ddpm": ("vp",), "smld": ("ve",)}
"""The objectives, and the SDEs for which each is defined."""
REDUCTIONS = {"mean": mean_except_batch, "half_sum": denoising.half_sum}
KEYS = (
    *VIEW_OPTIONS, *NCSNPP_OPTIONS, "model", "sde", "beta_min", "beta_max", "sigma_min",
    "sigma_max", "objective", "num_scales", "reduction", "learning_rate",
)  # fmt: skip
"""Keys that a config needs, beside `system` and those of the training loop."""
OPTIONS = (*VIEW_DEFAULTS, *score_model.OPTIONS, *ADAM_OPTIONS, *RECURRENT_OPTIONS)
"""Keys that it may have."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return score_model.training_system(make_model(config), config)


def make_model(config: ConfigDict) -> ScoreModel:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    sde = get_sde(config.sde, config.to_dict())
    suited = sorted(choose("objective", config.objective, OBJECTIVES))
    if config.sde not in suited:
        raise ValueError(
            f"objective {config.objective!r} needs sde={suited[0]!r}; got {config.sde!r}"
        )
    if config.embedding_type == "fourier" and config.objective in ("ddpm", "smld"):
        raise ValueError(
            "embedding_type 'fourier' takes the logarithm of the label, which is 0 at one end of "
            f"objective {config.objective!r}; take embedding_type 'positional'"
        )
    scores = score_fields(config, sde)
    return ScoreModel(
        sde=sde,
        data=ImageView.from_options(config),
        network=build_network(config.model, config.image_size, config),
        **scores,
        example_loss=objective(config, sde, scores["to_score"]),
        tx=adam_from_config(config),
        **score_model.options(config),
    )


def score_fields(config: ConfigDict, sde: SDE) -> dict[str, Callable[[NetworkFn], ScoreFn]]:
    """How a network's output becomes the score. Source: Appendix C.

    Along the chains of DDPM and SMLD it is that of the published code.
    """
    if config.objective == "ddpm":
        between = parameterize.noise_prediction_between_levels
        at_step = parameterize.discrete_noise_prediction
        return {
            "to_score": lambda network: between(sde, network, config.num_scales),
            "to_chain_score": lambda network: at_step(sde, network, config.num_scales),
        }
    if config.objective == "smld":
        return numbered_levels(sde, config.num_scales, divided_by_level(config))
    if config.sde == "ve":
        return {"to_score": sigma_times_score(sde)}
    return {"to_score": lambda network: parameterize.noise_prediction(sde, network)}


def objective(
    config: ConfigDict, sde: SDE, to_score: Callable[[NetworkFn], ScoreFn]
) -> ExampleLoss:
    """Eq. 7 with the weight std^2 or g^2, or its ancestors: Eq. 3 (DDPM) and Eq. 1 (SMLD)."""
    require(config, ("num_scales",), lambda v: v >= 2, "to be at least 2")
    options: dict[str, Any] = {"reduction": choose("reduction", config.reduction, REDUCTIONS)}
    if config.objective == "ddpm":
        options["num_scales"] = config.num_scales
        return lambda network, rng, x: denoising.ddpm_loss(network, sde, rng, x, **options)
    if config.objective == "smld":
        options["num_scales"] = config.num_scales
        divided = divided_by_level(config)
        return lambda network, rng, x: denoising.smld_loss(divided(network), sde, rng, x, **options)
    if config.objective == "likelihood":
        options["time_sampler"] = denoising.likelihood_times
        options["weighting"] = denoising.likelihood_weighting
    return lambda network, rng, x: denoising.denoising_score_matching(
        to_score(network), sde, rng, x, **options
    )


def divided_by_level(config: ConfigDict) -> Callable[[NetworkFn], NetworkFn]:
    """Divides a network's output by the sigma of the level that is its label."""
    sigmas = geometric_sigmas(config.sigma_min, config.sigma_max, config.num_scales)
    return lambda network: parameterize.divided_by_level_sigma(
        network, jnp.asarray(sigmas, jnp.float32)
    )
