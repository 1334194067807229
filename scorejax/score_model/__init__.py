# SPDX-License-Identifier: Apache-2.0
"""A trained score and what it is good for: samples, densities, completions.

Papers differ in how the score is trained and in what their networks put out; once there is a score
along an SDE, all of them draw and measure by the same functions. A system makes a `ScoreModel` of
its config, and passes it to them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from scorejax.choices import require
from scorejax.data.view import ImageView
from scorejax.sdes import SDE
from scorejax.typing import NetworkFn, ScoreFn, Variables

OPTIONS = (
    "predictor", "corrector", "snr", "num_corrector_steps", "num_sampling_steps", "denoise",
    "rtol", "atol",
)  # fmt: skip
"""Of predictor-corrector chains and of the probability-flow ODE."""
EVALUATION_OPTIONS = (
    "eval_examples", "eval_bits_examples", "eval_samples", "eval_frechet_samples", "eval_features",
    "batch_size",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """The score of images along an SDE, and how it is used unless one asks for something else."""

    sde: SDE
    images: ImageView
    score: Callable[[Variables], ScoreFn]
    """variables -> the score that the network has with them, as evaluation uses it."""
    options: Mapping[str, Any]
    """Those of `OPTIONS`; `evaluation.metrics` reads those of `EVALUATION_OPTIONS` as well."""

    @property
    def tolerances(self) -> dict[str, float]:
        """Of the probability-flow ODE. Raises: ValueError unless they lie between 0 and 1."""
        names = ("rtol", "atol")
        require(self.options, names, lambda v: 0 < v < 1, "to lie between 0 and 1")
        return {name: self.options[name] for name in names}


def bind(network: nn.Module, variables: Variables) -> NetworkFn:
    """The network (x, label) -> output as evaluation uses it: without dropout."""
    params, model_state = variables
    return lambda x, label: network.apply({"params": params, **model_state}, x, label)
