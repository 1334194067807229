# SPDX-License-Identifier: Apache-2.0
"""Options of sampling and evaluation: checked, with defaults for the keys that a config lacks."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from scorejax.choices import require, require_known
from scorejax.evaluate.chunks import examples_at_once
from scorejax.numerics import MATMUL_PRECISIONS
from scorejax.samplers.correctors import get_corrector
from scorejax.samplers.predictors import get_predictor


class _FromConfig:
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the options that a config has; the others keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: config[name] for name in names if name in config})


@dataclasses.dataclass(frozen=True)
class ChainOptions(_FromConfig):
    """Predictor-corrector sampling. Raises: ValueError for an unknown name or impossible number."""

    predictor: str = ""
    """By default reverse_diffusion, or euler_maruyama for an SDE without a discrete chain."""
    corrector: str = "none"
    snr: float = 0.16
    """Signal-to-noise ratio of a corrector's move."""
    num_corrector_steps: int = 1
    num_sampling_steps: int = 1000
    denoise: bool = True
    """Whether samples are rid of the noise that is left at the end, by every sampler.

    The last step of a chain then adds no noise; other samplers make one more evaluation. The
    predictor "none" has no such step. Latents are always encoded and decoded without it.
    """

    def __post_init__(self) -> None:
        values = vars(self)
        require(values, ("num_sampling_steps",), lambda v: v >= 2, "to be at least 2")
        require(values, ("num_corrector_steps",), lambda v: v >= 1, "to be at least 1")
        require(values, ("snr",), lambda v: 0 < v < math.inf, "to be a positive number")
        if self.predictor:
            get_predictor(self.predictor)
        get_corrector(self.corrector)


@dataclasses.dataclass(frozen=True)
class SolverOptions(_FromConfig):
    """Tolerances of the probability-flow ODE. Raises: ValueError unless they lie in (0, 1)."""

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        require(vars(self), ("rtol", "atol"), lambda v: 0 < v < 1, "to lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(_FromConfig):
    """Numbers of examples for each metric, 0 of which leaves the metric out; and the precision.

    Raises: ValueError for a negative number, no example for the held-out loss, or an unknown
    precision.
    """

    eval_examples: int = 1000
    """Test examples for the held-out loss."""
    eval_bits_examples: int = 0
    """Test examples for the likelihood."""
    eval_samples: int = 64
    """Samples to show."""
    eval_frechet_samples: int = 0
    """Samples for the Fréchet distance."""
    eval_features: str = ""
    """Features of that distance: "digits", or a file with FID's weights."""
    eval_matmul_precision: str = "highest"
    """Precision of products in likelihoods, the flow's adaptive solves and the features of metrics.

    One of `numerics.MATMUL_PRECISIONS`. Training, and samplers whose steps are fixed beforehand,
    have that of `jax.default_matmul_precision`.
    """
    batch_size: int = 128
    accumulation: int = 1
    """Parts into which training divides its batch."""

    @property
    def examples_at_once(self) -> int:
        """See `chunks.examples_at_once`."""
        return examples_at_once(self.batch_size, self.accumulation)

    def __post_init__(self) -> None:
        require(vars(self), ("eval_examples", "accumulation"), lambda v: v >= 1, "to be at least 1")
        counts = ("eval_bits_examples", "eval_samples", "eval_frechet_samples")
        require(vars(self), counts, lambda v: v >= 0, "to be at least 0")
        require_known("eval_matmul_precision", self.eval_matmul_precision, MATMUL_PRECISIONS)


OPTIONS = tuple(
    field.name
    for kind in (ChainOptions, SolverOptions, EvaluationOptions)
    for field in dataclasses.fields(kind)
)
"""Keys that a config of a score model may have."""


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields `chain`, `solver` and `eval_options` of a `ScoreModel`, from a config."""
    return {
        "chain": ChainOptions.from_config(config),
        "solver": SolverOptions.from_config(config),
        "eval_options": EvaluationOptions.from_config(config),
    }
