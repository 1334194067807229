# SPDX-License-Identifier: Apache-2.0
"""AR-CSM: autoregressive models whose conditionals are scores, by composite score matching.

A causal trunk (MADE or PixelCNN++) gives each dimension a context, and a head the score of the
dimension in it. The objective is exact (`csm`), by denoising (`denoising`), or, for the paper's
baseline on the same trunk, the likelihood of normalised mixtures (`likelihood`).

Source: Meng et al. 2020, arXiv:2010.12810.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scorejax.choices import choose, require, require_keys, require_known
from scorejax.data.grey_levels import GreyLevels
from scorejax.data.toy import TOYS, toy_distribution, toy_view
from scorejax.data.vectors import VectorView
from scorejax.data.view import VIEW_OPTIONS, DataView, ImageView
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.univariate import MixtureHead, ScoreHead
from scorejax.schedules import geometric_sigmas
from scorejax.score_model.options import EvaluationOptions
from scorejax.systems.ar_csm.model import ConditionalModel, LangevinOptions
from scorejax.systems.ar_csm.training import OBJECTIVES, training_system
from scorejax.train.optimizer import ADAM_OPTIONS, decaying_adam_from_config
from scorejax.train.system import System

TRUNK_OPTIONS = {
    "made": ("hidden", "num_hidden", "order_seed"),
    "pixelcnnpp": ("num_filters", "num_blocks", "num_resolutions", "dropout", "dtype"),
}
HEAD_OPTIONS = {
    "score": ("head_hidden", "num_head_hidden", "num_frequencies", "max_frequency"),
    "mixture": ("num_components", "mixture_kind"),
}
NOISE_OPTIONS = {
    "csm": ("data_noise",),
    "denoising": (
        "sigma_max", "sigma_min", "num_levels", "noisy_context", "langevin_step", "langevin_steps",
    ),
    "likelihood": (),
}  # fmt: skip
KEYS = (
    "dataset", "model", "head", "objective", "features", "num_cells", "learning_rate",
    "cosine_decay",
)  # fmt: skip
"""Keys that a config needs, beside `system`, those of its data, its network and the loop."""
TOY_OPTIONS = ("num_train_examples", "data_seed")
OPTIONS = (
    *VIEW_OPTIONS, *TOY_OPTIONS, *ADAM_OPTIONS, "eval_examples", "eval_bits_examples",
    "eval_samples", "eval_frechet_samples", "eval_features", "eval_matmul_precision",
    *(key for table in (TRUNK_OPTIONS, HEAD_OPTIONS, NOISE_OPTIONS) for keys in table.values()
      for key in keys),
)  # fmt: skip
"""Keys that it may have."""
