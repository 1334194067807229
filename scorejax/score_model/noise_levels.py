# SPDX-License-Identifier: Apache-2.0
"""Scores at a ladder of noise levels, and annealed Langevin dynamics down it.

A network of NCSN's family has a score along the VE SDE of its ladder, so that all other samplers
and the likelihood serve as well. Its own sampler, "ald", is Algorithm 1 of NCSNv2.

Source: Song & Ermon 2019, arXiv:1907.05600, and 2020, arXiv:2006.09011.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from scorejax import parameterize
from scorejax.choices import require
from scorejax.linear_operators import LinearOperator
from scorejax.samplers import langevin
from scorejax.schedules import Table, geometric_sigmas, langevin_step_size
from scorejax.score_model import control, sampling
from scorejax.sdes import SDE, VESDE
from scorejax.typing import Array, NetworkFn, PRNGKeyArray, Sampled, ScoreFn, Shape, Variables

if TYPE_CHECKING:
    from scorejax.score_model import ScoreModel


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Noise levels, and the annealed Langevin chain down them.

    `step_size` is the step size at the last level. With `rule`, 0 means the choice of NCSNv2's
    technique 4, which chains of other than `steps_per_level` steps a level always take.
    Raises: ValueError for an impossible ladder, or a step size at which the chain diverges.
    """

    sigma_min: float
    sigma_max: float
    num_scales: int
    steps_per_level: int
    step_size: float
    denoise: bool
    rule: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, rule: bool = True) -> Self:
        """Reads all fields but `rule` from a config."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "rule"]
        return cls(**{name: config[name] for name in names}, rule=rule)

    def __post_init__(self) -> None:
        require(vars(self), ("steps_per_level",), lambda v: v >= 1, "to be at least 1")
        if self.rule:
            needs = "to be positive, or 0 for a rule"
            require(vars(self), ("step_size",), lambda v: 0 <= v < math.inf, needs)
        else:
            needs = "to be a positive number"
            require(vars(self), ("step_size",), lambda v: 0 < v < math.inf, needs)
        self.chain()

    @property
    def sigmas(self) -> Table:
        """The noise levels, the noisiest first."""
        return geometric_sigmas(self.sigma_min, self.sigma_max, self.num_scales)

    @property
    def sde(self) -> VESDE:
        """The VE SDE whose marginals are the levels."""
        return VESDE(self.sigma_min, self.sigma_max)

    def chain(self, steps_per_level: int = 0) -> dict[str, Any]:
        """Arguments of `annealed_langevin`, with another number of steps a level unless it is 0.

        Raises: ValueError if the chain diverges.
        """
        sigmas, num_steps = self.sigmas, steps_per_level or self.steps_per_level
        step_size = self.step_size
        if self.rule and (not step_size or num_steps != self.steps_per_level):
            step_size = langevin_step_size(sigmas[0] / sigmas[1], num_steps) * self.sigma_min**2
        langevin.require_stable(sigmas, step_size)
        chain = {"sigmas": sigmas, "step_size": step_size, "steps_per_level": num_steps}
        return chain | {"denoise": self.denoise}


def score_fields(ladder: Ladder, model: str) -> dict[str, Callable[[NetworkFn], ScoreFn]]:
    """Fields of a `ScoreModel`: how the network's output becomes the score.

    The network "ncsn" takes the number of a level and predicts the score there. All others take no
    level; their output divided by sigma is the score (technique 3).
    """
    if model == "ncsn":
        return numbered_levels(ladder.sde, ladder.num_scales)
    return {"to_score": sigma_times_score(ladder.sde)}


def numbered_levels(
    sde: VESDE, num_scales: int, divided: Callable[[NetworkFn], NetworkFn] = lambda network: network
) -> dict[str, Callable[[NetworkFn], ScoreFn]]:
    """Fields of a `ScoreModel` whose network, `divided`, is the score at the level of a number."""
    between = parameterize.sigma_conditioned_between_levels
    at_level = parameterize.discrete_sigma_conditioned
    return {
        "to_score": lambda network: between(sde, divided(network), num_scales),
        "to_chain_score": lambda network: at_level(sde, divided(network), num_scales),
    }


def sigma_times_score(sde: VESDE) -> Callable[[NetworkFn], ScoreFn]:
    """network -> score, of a network that takes sigma and predicts sigma times the score."""
    return lambda network: parameterize.sigma_conditioned(
        sde, parameterize.divided_by_sigma(network)
    )


def langevin_fields(ladder: Ladder) -> dict[str, Any]:
    """Fields of a `ScoreModel` that samples and completes by annealed Langevin dynamics."""
    ald = functools.partial(_annealed_langevin, ladder)
    return {
        "samplers": {"ald": ald, **sampling.SAMPLERS},
        "trajectory": functools.partial(_trajectory, ladder),
        "complete": functools.partial(completion, ladder),
    }


def by_sigma(sde: SDE, score_fn: ScoreFn) -> ScoreFn:
    """The score as a function of (x, sigma)."""
    return lambda x, sigma: score_fn(x, sde.time_of_sigma(sigma))


def completion(
    ladder: Ladder, model: "ScoreModel", operator: LinearOperator, num_steps: int = 0
) -> control.Apply:
    """Completes images as `control.chain_completion` does, by annealed Langevin dynamics.

    Raises: ValueError for another number of steps.
    """
    if num_steps:
        raise ValueError(
            f"num_steps={num_steps} is for chains of score SDEs; the ladder of this run has "
            f"{ladder.steps_per_level} steps at each of {ladder.num_scales} levels"
        )

    def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
        x, score_fn = rows[model.data.field], by_sigma(model.sde, model.chain_score(variables))
        y = operator.forward(x)
        drawn = langevin.sample_given(
            rows["rng"], score_fn, x.shape, operator=operator, y=y, **ladder.chain()
        )
        return control.completed(model.data, operator, y, drawn.x)

    return complete


def _trajectory(ladder: Ladder, model: "ScoreModel") -> sampling.Trajectory:
    """Frames of samples on their way down the ladder."""
    chain = {"num_frames": min(sampling.NUM_FRAMES, ladder.num_scales), **ladder.chain()}

    def trajectory(variables: Variables, rngs: Array) -> Array:
        score_fn, shape = by_sigma(model.sde, model.chain_score(variables)), model.data.shape
        x = langevin.annealed_langevin_frames(rngs, score_fn, (len(rngs), *shape), **chain)
        return model.data.to_data(x)

    return trajectory


def _annealed_langevin(ladder: Ladder, model: "ScoreModel") -> sampling.Stepper:
    def sample(rng: PRNGKeyArray, score_fn: ScoreFn, shape: Shape, *, num_steps: int) -> Sampled:
        score = by_sigma(model.sde, score_fn)
        return langevin.annealed_langevin(rng, score, shape, **ladder.chain(num_steps))

    steps_of_nfe = lambda nfe: (nfe - int(ladder.denoise)) // ladder.num_scales
    return sampling.Stepper(sample, ladder.steps_per_level, steps_of_nfe, fewest=1, on_chain=True)
