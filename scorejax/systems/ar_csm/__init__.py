# SPDX-License-Identifier: Apache-2.0
"""AR-CSM: autoregressive models whose conditionals are scores, by composite score matching.

A causal trunk (MADE or PixelCNN++) gives each dimension a context, and a head the score of the
dimension in it. The objective is exact (`csm`), by denoising (`denoising`), or, for the paper's
baseline on the same trunk, the likelihood of normalised mixtures (`likelihood`). The model
"implicit_vae" is an experiment of its own, see `autoencoder`.

Source: Meng et al. 2020, arXiv:2010.12810.
"""

import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys
from scorejax.data import preparation, tables
from scorejax.data.grey_levels import GreyLevels
from scorejax.data.toy import TOYS, toy_distribution, toy_view
from scorejax.data.view import VIEW_DEFAULTS, VIEW_OPTIONS, DataView, ImageView
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.pixelcnnpp import PixelCNNPP
from scorejax.models.univariate import MixtureHead, ScoreHead
from scorejax.quadrature import MIN_CELLS
from scorejax.schedules import geometric_sigmas
from scorejax.score_model.options import EvaluationOptions
from scorejax.systems.ar_csm import autoencoder, objectives, training
from scorejax.systems.ar_csm.autoencoder import BinaryVAE
from scorejax.systems.ar_csm.model import ConditionalModel, LangevinOptions
from scorejax.train.optimizer import ADAM_OPTIONS, decaying_adam_from_config
from scorejax.train.system import System

TRUNK_OPTIONS = {
    "made": ("hidden", "num_hidden", "order_seed"),
    "pixelcnnpp": ("num_filters", "num_blocks", "num_resolutions", "dropout"),
}
HEAD_OPTIONS = {
    "score": ("head_hidden", "num_head_hidden", "num_frequencies", "max_frequency"),
    "mixture": ("num_components", "mixture_kind"),
}
OBJECTIVE_OPTIONS = {
    "csm": ("data_noise", "weighted"),
    "denoising": (
        "sigma_max", "sigma_min", "num_levels", "noisy_context", "langevin_step", "langevin_steps",
    ),
    "likelihood": (),
}  # fmt: skip
DEFAULTS = {"num_trunk_frequencies": 0, "max_trunk_frequency": 1.0, "min_variance": 1e-3}
"""Values of keys that a config may leave out: the Fourier series of a MADE's inputs, and the least
variance of a score head."""
TOY_OPTIONS = ("num_train_examples", "data_seed")
TABLE_OPTIONS = ("split_seed", "held_out", "dequantize")
KEYS = (
    "dataset", "model", "head", "objective", "features", "num_cells", "learning_rate",
    "cosine_decay",
)  # fmt: skip
"""Keys that a config needs, beside `system`, those of its data, its network and the loop."""
OPTIONS = (
    *VIEW_OPTIONS, *VIEW_DEFAULTS, *TOY_OPTIONS, *TABLE_OPTIONS, *ADAM_OPTIONS, *DEFAULTS,
    "eval_examples", "eval_bits_examples", "eval_samples", "eval_frechet_samples", "eval_features",
    "eval_matmul_precision",
    *(key for table in (TRUNK_OPTIONS, HEAD_OPTIONS, OBJECTIVE_OPTIONS)
      for keys in table.values() for key in keys),
)  # fmt: skip
"""Keys that it may have."""
TAIL = 8.0
"""How many times the least noise the quadrature goes beyond the data."""


def experiment(config: ConfigDict) -> ModuleType:
    """The module that reads a config: `autoencoder`, or this one."""
    return autoencoder if config.get("model") == "implicit_vae" else sys.modules[__name__]


def build(config: ConfigDict) -> System:
    """The training of a config. Raises: ValueError, or FileNotFoundError without its data."""
    if experiment(config) is autoencoder:
        return autoencoder.build(config)
    return training.training_system(make_model(config), config)


def make_model(config: ConfigDict) -> ConditionalModel | BinaryVAE:
    """The model of a config; reads a table. Raises: ValueError for an impossible value."""
    if experiment(config) is autoencoder:
        return autoencoder.make_model(config)
    require_keys(config, KEYS)
    require_keys(config, choose("objective", config.objective, OBJECTIVE_OPTIONS))
    require(config, ("num_cells",), lambda v: v >= MIN_CELLS, f"to be at least {MIN_CELLS}")
    data = view(config)
    levels = grey_levels(config, data)
    sigmas = noise_levels(config)
    data_noise = noise_of_data(config)
    low, high = support(data, levels, data_noise if sigmas is None else float(sigmas[-1]))
    noisy_context = config.get("noisy_context", False)
    if noisy_context and config.objective != "denoising":
        raise ValueError(
            f"noisy_context=True needs objective='denoising'; got {config.objective!r}"
        )
    return ConditionalModel(
        data=data,
        network=network(config, data),
        objective=objective(config, levels, sigmas),
        held_out_objective=objective(config, levels, sigmas, held_out=True),
        sigmas=sigmas,
        noisy_context=noisy_context,
        levels=levels,
        low=low,
        high=high,
        data_noise=data_noise,
        num_cells=config.num_cells,
        langevin=langevin_options(config),
        tx=decaying_adam_from_config(config),
        eval_options=EvaluationOptions.from_config(config),
        truth=toy_distribution(config.dataset) if config.dataset in TOYS else None,
    )


def view(config: ConfigDict) -> DataView:
    """The data of a config: points of the plane, the rows of a table, or images.

    Raises: ValueError for unknown data, or a table whose values repeat.
    """
    if config.dataset in TOYS:
        require_keys(config, TOY_OPTIONS)
        num = {"num_train": config.num_train_examples, "num_test": config.eval_examples}
        return toy_view(config.dataset, **num, seed=config.data_seed)
    if "split_seed" not in config:
        require_keys(config, VIEW_OPTIONS)
        return ImageView.from_options(config)
    require_keys(config, TABLE_OPTIONS)
    options = {"seed": config.split_seed, "held_out": config.held_out}
    options |= {"preparation": "standardised", "dequantize": config.dequantize}
    table = tables.load(config.dataset, **options)
    noiseless = config.objective == "csm" and not config.data_noise
    if noiseless or config.objective == "likelihood":
        preparation.require_continuous(table.train, table.columns)
    return table.view()


def grey_levels(config: ConfigDict, data: DataView) -> GreyLevels | None:
    """The grey levels of images whose contexts are discrete, those that are not dequantised.

    Raises: ValueError for an objective that falls without bound on them, or for images whose values
    are not rounded to them.
    """
    if not isinstance(data, ImageView) or data.uniform_dequantization:
        return None
    if config.objective == "csm":
        raise ValueError(
            "objective 'csm' has no lower bound on grey levels; set uniform_dequantization=True, "
            "or take objective='denoising'"
        )
    if config.objective == "denoising" and config.noisy_context:
        return None
    if not data.rounded:
        raise ValueError(
            "contexts of grey levels need images whose values are rounded to levels; got "
            f"{config.dataset!r}. Take {config.dataset.removesuffix('_square')!r}"
        )
    return GreyLevels.of(data)


def noise_levels(config: ConfigDict) -> np.ndarray | None:
    """The descending noise levels of `denoising`; None for other objectives."""
    if config.objective != "denoising":
        return None
    if config.num_levels == 1:
        positive = lambda v: 0 < v < math.inf
        require(config, ("sigma_min",), positive, "to be a positive number")
        return np.array([config.sigma_min])
    return np.asarray(geometric_sigmas(config.sigma_min, config.sigma_max, config.num_levels))


def noise_of_data(config: ConfigDict) -> float:
    """Standard deviation of the noise that `csm` adds to the data; 0 for other objectives."""
    if config.objective != "csm":
        return 0.0
    require(config, ("data_noise",), lambda v: 0 <= v < math.inf, "to be 0 or positive")
    return config.data_noise


def support(data: DataView, levels: GreyLevels | None, sigma: float) -> tuple[float, float]:
    """The range of the quadrature: that of the data with noise sigma, and some more.

    Tables have tails of their own beyond the training rows; images do not.
    """
    if isinstance(data, ImageView):
        margin = TAIL * sigma if levels is None else levels.spacing / 2 + TAIL * sigma
        margin = max(margin, 0.1)
        return data.data_range[0] - margin, data.data_range[1] + margin
    low, high = float(data.train.min()), float(data.train.max())
    margin = max(0.5 * (high - low), TAIL * sigma)
    return low - margin, high + margin


def objective(
    config: ConfigDict,
    levels: GreyLevels | None,
    sigmas: np.ndarray | None,
    *,
    held_out: bool = False,
) -> objectives.Objective:
    """The objective of a config; `held_out` has no weights. Raises: ValueError."""
    if config.objective == "csm":
        weighted = config.weighted and not held_out
        return objectives.score_matching(noise_of_data(config), weighted=weighted)
    if sigmas is not None:
        return objectives.denoising(sigmas, noisy_context=config.noisy_context)
    if config.head != "mixture":
        raise ValueError(f"objective 'likelihood' needs head='mixture'; got {config.head!r}")
    return objectives.likelihood(levels)


def langevin_options(config: ConfigDict) -> LangevinOptions | None:
    """Step size and number of steps of models of noise levels."""
    if config.objective != "denoising":
        return None
    require(config, ("langevin_step",), lambda v: 0 < v < 4, "to lie in (0, 4), where it is stable")
    require(config, ("langevin_steps",), lambda v: v >= 1, "to be at least 1")
    return LangevinOptions(config.langevin_step, config.langevin_steps)


def network(config: ConfigDict, data: DataView) -> AutoregressiveModel:
    """The network of a config. Raises: ValueError unless it suits the data."""
    options = choose("model", config.model, TRUNK_OPTIONS)
    if config.model != "made" and len(data.shape) != 3:
        raise ValueError(f"examples of shape {data.shape} need model='made'; got {config.model!r}")
    require_keys(config, options)
    if config.model == "made":
        earlier = math.prod(data.shape) - 1
        # With a condition the first units see it alone.
        seen = "the noise level and " if config.get("noisy_context", False) else ""
        enough = lambda v: v >= earlier + bool(seen)
        wanted = f"a unit for {seen}each of {earlier} earlier dimensions"
        require(config, ("hidden",), enough, wanted)
    elif config.get("order_seed", 0):
        raise ValueError(f"{config.model!r} has one order; order_seed needs 0 or model='made'")
    elif _optional(config, "num_trunk_frequencies"):
        raise ValueError(
            f"num_trunk_frequencies needs model='made', or to be 0; got {config.model!r}"
        )
    require_keys(config, choose("head", config.head, HEAD_OPTIONS))
    if config.head == "mixture":
        head = MixtureHead(config.num_components, config.mixture_kind)
    else:
        head = ScoreHead(
            config.head_hidden,
            config.num_head_hidden,
            num_frequencies=config.num_frequencies,
            max_frequency=config.max_frequency,
            min_variance=_optional(config, "min_variance"),
        )
    return AutoregressiveModel(trunk(config, data), head)


def trunk(config: Mapping[str, Any], data: DataView) -> Any:
    """The causal trunk of a config. Raises: ValueError for an impossible size."""
    if config["model"] == "made":
        order = None
        if config["order_seed"]:
            rng = np.random.default_rng(config["order_seed"])
            order = rng.permutation(math.prod(data.shape))
        sizes = config["hidden"], config["num_hidden"], config["features"]
        return MaskedTrunk(
            *sizes,
            order,
            num_frequencies=_optional(config, "num_trunk_frequencies"),
            max_frequency=_optional(config, "max_trunk_frequency"),
        )
    names = ("num_filters", "num_blocks", "num_resolutions", "features", "dropout")
    return PixelCNNPP(data.shape, **{name: config[name] for name in names})


def _optional(config: Mapping[str, Any], name: str) -> Any:
    return config.get(name, DEFAULTS[name])
