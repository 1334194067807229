# SPDX-License-Identifier: Apache-2.0
"""A score along an SDE: its training, and everything that one does with a trained score.

Papers differ in how the score is trained and in what their networks predict. Samples, densities,
completions and metrics are the same for all: a system's `make_model(config)` binds a config to a
`ScoreModel`, and its `build(config)` is `training_system(make_model(config), config)`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import optax

from scorejax.data.view import DataView
from scorejax.evaluate.progress import Metrics
from scorejax.linear_operators import LinearOperator
from scorejax.objectives.training_loss import ExampleLoss
from scorejax.score_model import control, evaluation, sampling
from scorejax.score_model.binding import bind
from scorejax.score_model.options import (
    OPTIONS,
    ChainOptions,
    EvaluationOptions,
    SolverOptions,
    options,
)
from scorejax.score_model.training import training_system
from scorejax.sdes import SDE
from scorejax.typing import NetworkFn, ScoreFn, Variables

__all__ = [
    "OPTIONS", "ChainOptions", "EvaluationOptions", "ScoreModel", "SolverOptions", "bind",
    "options", "training_system",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreModel:
    """The score of images or vectors along an SDE, its training and its default samplers."""

    sde: SDE
    data: DataView
    network: nn.Module
    to_score: Callable[[NetworkFn], ScoreFn]
    """network -> score along the SDE: the convention in which the network was trained."""
    example_loss: ExampleLoss
    """(network, rng, x) -> (b,)."""
    tx: optax.GradientTransformation
    chain: ChainOptions = dataclasses.field(default_factory=ChainOptions)
    solver: SolverOptions = dataclasses.field(default_factory=SolverOptions)
    eval_options: EvaluationOptions = dataclasses.field(default_factory=EvaluationOptions)
    samplers: Mapping[str, sampling.MakeStepper] = dataclasses.field(
        default_factory=lambda: sampling.SAMPLERS
    )
    """Samplers by name; the first is the paper's own."""
    trajectory: sampling.MakeTrajectory = sampling.chain_trajectory
    """model -> the samples' way from noise, which the metric "samples" shows."""
    complete: control.MakeCompletion = control.chain_completion
    """(model, operator, num_steps) -> the paper's method for linear inverse problems."""
    to_chain_score: Callable[[NetworkFn], ScoreFn] | None = None
    """network -> score along the discrete chain, where it is not that along the SDE."""
    further_metrics: Callable[["ScoreModel"], Metrics] = lambda model: {}
    """model -> metrics of this paper alone."""

    def score(self, variables: Variables) -> ScoreFn:
        """The score of the network with these variables, without dropout."""
        return self.to_score(bind(self.network, variables))

    def chain_score(self, variables: Variables) -> ScoreFn:
        """The score as predictor-corrector chains need it."""
        return (self.to_chain_score or self.to_score)(bind(self.network, variables))

    @property
    def sampler_names(self) -> tuple[str, ...]:
        """Names of the samplers, the paper's own first."""
        return tuple(self.samplers)

    def solver_options(self) -> dict[str, Any]:
        """Tolerances and precision of the adaptive solves of the probability flow."""
        precision = self.eval_options.eval_matmul_precision
        return dataclasses.asdict(self.solver) | {"matmul_precision": precision}

    def sampler(self, name: str = "", **options: Any) -> sampling.Draw:
        """See `sampling.sampler`."""
        return sampling.sampler(self, name, **options)

    def likelihood(self, *, exact: bool = False) -> Callable:
        """See `evaluation.likelihood`."""
        return evaluation.likelihood(self, exact=exact)

    def completion(self, operator: LinearOperator, *, num_steps: int = 0) -> control.Apply:
        """See `control.chain_completion`. `num_steps` 0 is the number in the options."""
        return self.complete(self, operator, num_steps)

    def interpolation(self, num: int) -> control.Apply:
        """See `control.interpolation`."""
        return control.interpolation(self, num)

    def metrics(self) -> Metrics:
        """See `evaluation.metrics`."""
        return evaluation.metrics(self) | self.further_metrics(self)

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, self.data.shape[-1]
