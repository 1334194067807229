# SPDX-License-Identifier: Apache-2.0
"""Diffusion recovery likelihood: energy-based models trained along a ladder of noise levels.

One network has an energy for each level. It is trained by the likelihood of an example given its
noisier copy of the next level (Algorithm 1), with negatives from short Langevin chains that start
there; samples come down the ladder by the same chains (Algorithm 2). Examples are images, or points
of the plane with a known density.

Source: Gao et al. 2021, arXiv:2012.08125.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data.toy import TOYS, toy_distribution, toy_view
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, DataView, ImageView
from scorejax.models.build import DTYPES
from scorejax.models.mlp import LevelPerceptron
from scorejax.models.recovery_resnet import RecoveryResNet
from scorejax.samplers.recovery import require_steps
from scorejax.schedules import (
    RecoveryLevels,
    fine_recovery_levels,
    geometric_recovery_levels,
    recovery_levels,
)
from scorejax.score_model.options import EvaluationOptions
from scorejax.systems.recovery_ebm.model import OBJECTIVES, LongChains, RecoveryModel
from scorejax.systems.recovery_ebm.training import training_system
from scorejax.train.optimizer import ADAM_OPTIONS, decaying_adam_from_config
from scorejax.train.system import System

NETWORK_OPTIONS = {
    "resnet": (
        "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "spectral_norm", "activation",
        "dtype", "remat",
    ),
    "mlp": (
        "hidden", "num_hidden", "activation", "spectral_norm", "input_scale", "num_frequencies",
        "frequency",
    ),
}  # fmt: skip
LEVEL_OPTIONS = ("step_rule", "detail", "energy_unit")
LADDERS = {
    "blocks": recovery_levels,
    "fine": fine_recovery_levels,
    "geometric": geometric_recovery_levels,
}
KEYS = (
    "dataset", "model", "ladder", "num_levels", "step_scale", *LEVEL_OPTIONS, "objective",
    "num_chain_steps", "noise_scale", "energy_band", "learning_rate", "cosine_decay",
    "eval_chain_steps", "eval_chains",
)  # fmt: skip
"""Keys that a config needs, beside `system`, those of its data, its network and the loop."""
TOY_OPTIONS = ("num_train_examples", "data_seed")
OPTIONS = (
    *VIEW_OPTIONS, *VIEW_DEFAULTS, *TOY_OPTIONS, *NETWORK_OPTIONS["resnet"],
    *NETWORK_OPTIONS["mlp"], *ADAM_OPTIONS, "background", "eval_examples", "eval_samples",
    "eval_frechet_samples", "eval_features", "eval_matmul_precision",
)  # fmt: skip
"""Keys that it may have."""


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    return training_system(make_model(config), config)


def make_model(config: ConfigDict) -> RecoveryModel:
    """The model of a config. Raises: ValueError for an impossible value."""
    require_keys(config, KEYS)
    require_known("objective", config.objective, OBJECTIVES)
    ladder = config.ladder if config.ladder in LADDERS and config.ladder != "blocks" else "fine"
    needed = {"ladder": ladder, "num_chain_steps": 0, "energy_unit": "nats"}
    wrong = [key for key, value in needed.items() if config[key] != value]
    if config.objective == "denoising" and wrong:
        raise ValueError(
            f"objective 'denoising' needs {wrong[0]}={needed[wrong[0]]!r}; got {config[wrong[0]]!r}"
        )
    levels = make_ladder(config)
    require_steps(levels, config.num_chain_steps)
    if config.objective == "recovery" and not config.num_chain_steps:
        raise ValueError(
            "objective 'recovery' needs num_chain_steps >= 1: single draws are wider than level 0 "
            "of flat data, whatever the energy; take objective='denoising', or 30 steps"
        )
    require(config, ("noise_scale",), lambda v: 0 < v <= 1, "to lie in (0, 1]")
    require(config, ("eval_chain_steps",), lambda v: v >= 0, "to be at least 0")
    require(config, ("eval_chains",), lambda v: v >= 3, "to be at least 3, to see a trend")
    require({"background": 0.0, **config}, ("background",), lambda v: 0 <= v < 1, "to be in [0, 1)")
    require(config, ("energy_band",), lambda v: v >= 0, "to be positive, or 0 for none")
    data = view(config)
    return RecoveryModel(
        levels=levels,
        data=data,
        network=network(config, data),
        objective=config.objective,
        num_chain_steps=config.num_chain_steps,
        noise_scale=config.noise_scale,
        energy_band=config.energy_band,
        tx=decaying_adam_from_config(config),
        eval_options=EvaluationOptions.from_config(config),
        long_chains=LongChains(config.eval_chain_steps, config.eval_chains),
        background=config.get("background", 0.0),
        truth=toy_distribution(config.dataset) if config.dataset in TOYS else None,
    )


def make_ladder(config: Mapping[str, Any]) -> RecoveryLevels:
    """The noise levels of a config. Raises: ValueError for an impossible ladder."""
    ladder = choose("ladder", config["ladder"], LADDERS)
    options = {name: config[name] for name in LEVEL_OPTIONS}
    return ladder(config["num_levels"], step_scale=config["step_scale"], **options)


def view(config: ConfigDict) -> DataView:
    """The data of a config: images, or points of the plane."""
    if config.dataset in TOYS:
        require_keys(config, TOY_OPTIONS)
        return toy_view(
            config.dataset,
            num_train=config.num_train_examples,
            num_test=config.eval_examples,
            seed=config.data_seed,
        )
    require_keys(config, VIEW_OPTIONS)
    return ImageView.from_options(config)


def network(config: ConfigDict, data: DataView) -> nn.Module:
    """The network of a config. Raises: ValueError unless it suits the data."""
    options = choose("model", config.model, NETWORK_OPTIONS)
    require_keys(config, options)
    kind, axes = (RecoveryResNet, 3) if config.model == "resnet" else (LevelPerceptron, 1)
    if len(data.shape) != axes:
        suited = "mlp" if axes == 3 else "resnet"
        raise ValueError(
            f"examples of shape {data.shape} need model={suited!r}; got {config.model!r}"
        )
    values = {option: config[option] for option in options}
    if "dtype" in values:
        values["dtype"] = choose("dtype", config.dtype, DTYPES)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
