# SPDX-License-Identifier: Apache-2.0
"""A ladder of energies of images or vectors, and what one does with it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from scorejax.choices import unknown
from scorejax.data.toy import PlaneDistribution
from scorejax.data.view import DataView
from scorejax.evaluate.progress import Metrics
from scorejax.linear_operators import LinearOperator
from scorejax.objectives import recovery as objectives
from scorejax.parameterize import recovery_energy
from scorejax.random import Rng, split
from scorejax.samplers import recovery as samplers
from scorejax.schedules import RecoveryLevels
from scorejax.score_model.binding import bind
from scorejax.score_model.control import Apply
from scorejax.score_model.options import EvaluationOptions
from scorejax.score_model.sampling import Draw, Trajectory
from scorejax.systems.recovery_ebm import evaluation
from scorejax.typing import Array, EnergyFn, PRNGKeyArray, Variables

NUM_FRAMES = 10

OBJECTIVES = ("recovery", "denoising")
"""Names of the objectives: by negatives, or by the normal approximation alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class RecoveryModel:
    """Energies of the levels of a ladder, by one network, and Langevin chains on them."""

    levels: RecoveryLevels
    data: DataView
    network: nn.Module
    objective: str
    num_chain_steps: int
    """Langevin steps a level; 0 draws from the normal approximation."""
    noise_scale: float
    """Factor of the noise in samples; training has 1."""
    energy_band: float
    """The run has diverged if |F(negative) - F(positive)| exceeds this per dimension; 0: never."""
    tx: optax.GradientTransformation
    eval_options: EvaluationOptions
    truth: PlaneDistribution | None = None
    """The distribution of the data, where it is known."""

    def energy(self, variables: Variables) -> EnergyFn:
        """The energy (y (b, *d), t (b,)) -> (b,) in nats of y_t, see `samplers.recovery`."""
        return recovery_energy(self.levels, bind(self.network, variables))

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Draw:
        """draw(variables, keys (b,)) -> {"image" in [0, 1], not clipped, or "x", and "nfe"}.

        Each sample is a function of its own key. `num_steps` is the number of steps a level, `nfe`
        that of gradient calls at most; with neither, the model's.
        Raises: ValueError for any sampler but "langevin", or too few calls.
        """
        options = self._chain(name, num_steps, nfe)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            shape = len(rngs), *self.data.shape
            x, nfe = samplers.sample(rngs, self.energy(variables), shape, self.levels, **options)
            return {self.data.field: self.data.to_data(x), "nfe": jnp.full(len(rngs), nfe)}

        return draw

    def trajectory(self) -> Trajectory:
        """(variables, keys (b,)) -> frames of samples on their way down the ladder."""
        options = self._chain("", 0, 0)
        options["num_frames"] = min(NUM_FRAMES, self.levels.num_energies)

        def trajectory(variables: Variables, rngs: Array) -> Array:
            shape = len(rngs), *self.data.shape
            path = samplers.sample_path(rngs, self.energy(variables), shape, self.levels, **options)
            return self.data.to_data(path.x)

        return trajectory

    def completion(self, operator: LinearOperator, *, num_steps: int = 0) -> Apply:
        """See `capabilities.Completes`; `num_steps` a level, 0 for the model's."""
        options = self._chain("", num_steps, 0)

        def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
            x = rows[self.data.field]
            y = operator.forward(x)
            drawn = samplers.sample_given(
                rows["rng"], self.energy(variables), x.shape, self.levels, operator=operator, y=y,
                **options,
            )  # fmt: skip
            return {
                "measured": self.data.to_data(operator.pinv(y)),
                self.data.field: self.data.to_data(drawn.x),
            }

        return complete

    def metrics(self) -> Metrics:
        """See `evaluation.metrics`."""
        return evaluation.metrics(self)

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, self.data.shape[-1]

    def losses(self, variables: Variables, rng: Rng, x: Array) -> tuple[Array, dict[str, Array]]:
        """The objective of each example at a random level (b,), and what to watch (b,)."""
        level_rng, pair_rng = split(rng)
        t = objectives.draw_levels(level_rng, len(x), self.levels)
        energy_fn = self.energy(variables)
        if self.objective == "denoising":
            return objectives.recovery_denoising(energy_fn, pair_rng, x, self.levels, t), {}
        held = self.energy(jax.lax.stop_gradient(variables))
        num_steps = {"num_steps": self.num_chain_steps}
        pair = objectives.draw_pair(held, pair_rng, x, self.levels, t, **num_steps)
        result = objectives.contrast(energy_fn, self.levels, t, pair.positive, pair.negative)
        return result.loss, objectives.watched(result, pair, self.levels, t)

    def _chain(self, name: str, num_steps: int, nfe: int) -> dict[str, Any]:
        """Options of the samplers."""
        if name not in ("", "langevin"):
            raise unknown("sampler", name, ["langevin"])
        if num_steps and nfe:
            raise ValueError(f"give num_steps or nfe, not both; got {num_steps} and {nfe}")
        if nfe:
            num_steps = nfe // self.levels.num_energies
            if not num_steps:
                raise ValueError(
                    f"nfe needs at least {self.levels.num_energies}, one a level; got {nfe}"
                )
        num_steps = num_steps or self.num_chain_steps
        samplers.require_steps(self.levels, num_steps)
        return {"num_steps": num_steps, "noise_scale": self.noise_scale}
