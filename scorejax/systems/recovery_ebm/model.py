# SPDX-License-Identifier: Apache-2.0
"""A ladder of energies of images or vectors, and what one does with it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorejax.choices import require, unknown
from scorejax.data.toy import PlaneDistribution
from scorejax.data.view import DataView
from scorejax.density.bidirectional import Sandwich
from scorejax.evaluate.progress import Metrics
from scorejax.linear_operators import LinearOperator
from scorejax.objectives import recovery as objectives
from scorejax.parameterize import recovery_energy
from scorejax.random import Rng, split
from scorejax.samplers import recovery as samplers
from scorejax.samplers.recovery_ancestral import sample_ancestral
from scorejax.schedules import RecoveryLevels
from scorejax.score_model.binding import bind
from scorejax.score_model.control import Apply, completed
from scorejax.score_model.options import EvaluationOptions
from scorejax.score_model.sampling import Draw, Trajectory
from scorejax.systems.recovery_ebm import density, evaluation
from scorejax.typing import Array, EnergyFn, PRNGKeyArray, Sampled, Variables

NUM_FRAMES = 10

OBJECTIVES = ("recovery", "denoising")
"""Names of the objectives: by negatives, or by the normal approximation alone."""


class LongChains(NamedTuple):
    """Numbers of steps and of chains of the metric "long_chains"; 0 steps leave it out."""

    num_steps: int
    num_chains: int


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
    long_chains: LongChains
    background: float = 0.0
    """Share of white noise among the examples of the losses."""
    truth: PlaneDistribution | None = None
    """The distribution of the data, where it is known."""
    sampler_names: ClassVar[tuple[str, ...]] = ("langevin",)
    """Names of the samplers, the default first."""

    def energy(self, variables: Variables) -> EnergyFn:
        """The energy (y (b, *d), t (b,)) -> (b,) in nats of y_t, see `samplers.recovery`."""
        return recovery_energy(self.levels, bind(self.network, variables))

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Draw:
        """draw(variables, keys (b,)) -> {"image" in [0, 1], not clipped, or "x", and "nfe"}.

        Each sample is a function of its own key. `num_steps` is the number of steps a level, `nfe`
        that of gradient calls at most; with neither, the model's. Energies by denoising can have
        fewer calls than levels, by ancestral sampling.
        Raises: ValueError for any sampler but "langevin", or too few calls.
        """
        sample = self._sample(name, num_steps, nfe)

        def draw(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            shape = len(rngs), *self.data.shape
            x, nfe = sample(rngs, self.energy(variables), shape, self.levels)
            return {self.data.field: self.data.to_data(x), "nfe": jnp.full(len(rngs), nfe)}

        return draw

    def _sample(self, name: str, num_steps: int, nfe: int) -> Callable[..., Sampled]:
        few = self.objective == "denoising" and 1 < nfe < self.levels.num_energies
        if few and not (name or num_steps):
            options = {"num_calls": nfe, "noise_scale": self.noise_scale}
            return functools.partial(sample_ancestral, **options)
        options = self.chain_options(name, num_steps=num_steps, nfe=nfe)
        return functools.partial(samplers.sample, **options)

    def trajectory(self) -> Trajectory:
        """(variables, keys (b,)) -> frames of samples on their way down the ladder."""
        options = self.chain_options()
        options["num_frames"] = min(NUM_FRAMES, self.levels.num_energies)

        def trajectory(variables: Variables, rngs: Array) -> Array:
            shape = len(rngs), *self.data.shape
            path = samplers.sample_path(rngs, self.energy(variables), shape, self.levels, **options)
            return self.data.to_data(path.x)

        return trajectory

    def completion(self, operator: LinearOperator, *, num_steps: int = 0) -> Apply:
        """See `capabilities.Completes`; `num_steps` a level, 0 for the model's."""
        options = self.chain_options(num_steps=num_steps)

        def complete(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
            x = rows[self.data.field]
            y = operator.forward(x)
            drawn = samplers.sample_given(
                rows["rng"], self.energy(variables), x.shape, self.levels, operator=operator, y=y,
                **options,
            )  # fmt: skip
            return completed(self.data, operator, y, drawn.x)

        return complete

    def noise_interpolation(self, num: int) -> Apply:
        """draw(variables, {"rng": keys (b,)}) -> {"image": (b, num, h, w, c) in [0, 1]}, or "x".

        See `samplers.recovery.interpolate`.
        """
        options = self.chain_options()

        def draw(variables: Variables, rows: dict[str, Array]) -> dict[str, Array]:
            rngs = rows["rng"]
            shape, energy_fn = (len(rngs), *self.data.shape), self.energy(variables)
            x = samplers.interpolate(rngs, energy_fn, shape, num, self.levels, **options).x
            return {self.data.field: self.data.to_data(x)}

        return draw

    def likelihood(self, *, exact: bool = False) -> Callable:
        """See `density.likelihood`: log p up to `normalizer`.

        Raises: ValueError if `exact`, which is for divergences of flows.
        """
        if exact:
            raise ValueError("energies have no divergence to compute exactly; leave that out")
        return density.likelihood(self)

    def normalizer(
        self,
        *,
        num_walks: int,
        num_temperatures: int,
        num_chain_steps: int,
        chunk: int | None = None,
    ) -> Callable[[Variables, PRNGKeyArray], Sandwich]:
        """(variables, rng) -> bounds of log Z, see `density.normalizer`, from training examples.

        `chunk` walks are in memory at a time. The bounds meet within 0.01 bits/dim.
        Raises: ValueError unless num_walks is at least 2 and the other numbers 1, there are as many
        training examples as walks, and `chunk` divides their number.
        """
        numbers = {"num_walks": num_walks, "num_temperatures": num_temperatures}
        numbers["num_chain_steps"] = num_chain_steps
        require(numbers, ("num_walks",), lambda v: v >= 2, "to be at least 2")
        require(numbers, numbers, lambda v: v >= 1, "to be at least 1")
        chunk = num_walks if chunk is None else min(chunk, num_walks)
        if num_walks % chunk:
            raise ValueError(
                f"num_walks needs to be a multiple of {chunk}, the batch_size; got {num_walks}"
            )
        x = self.data.density_examples(np.random.default_rng(0), num_walks, "train")
        if len(x) < num_walks:
            raise ValueError(
                f"num_walks needs to be at most {len(x)}, the training examples; got {num_walks}"
            )
        tolerance = max(0.2, 0.01 * math.log(2) * math.prod(self.data.shape))
        bounds = density.normalizer(self, **numbers, chunk=chunk, tolerance=tolerance)
        return lambda variables, rng: bounds(variables, rng, x)

    def caveats(self) -> list[str]:
        """Sentences that a reader of densities of this model needs."""
        return density.caveats(self)

    def metrics(self) -> Metrics:
        """See `evaluation.metrics`."""
        return evaluation.metrics(self)

    def import_target(self) -> tuple[nn.Module, optax.GradientTransformation, int]:
        """The network that takes published weights, its optimiser, and its input channels."""
        return self.network, self.tx, self.data.shape[-1]

    def losses(self, variables: Variables, rng: Rng, x: Array) -> tuple[Array, dict[str, Array]]:
        """The objective of each example at a random level (b,), and what to watch (b,)."""
        level_rng, pair_rng, background_rng = split(rng, 3)
        x = objectives.with_background(background_rng, x, self.background)
        t = objectives.draw_levels(level_rng, len(x), self.levels)
        energy_fn = self.energy(variables)
        if self.objective == "denoising":
            return objectives.recovery_denoising(energy_fn, pair_rng, x, self.levels, t), {}
        held = self.energy(jax.lax.stop_gradient(variables))
        num_steps = {"num_steps": self.num_chain_steps}
        pair = objectives.draw_pair(held, pair_rng, x, self.levels, t, **num_steps)
        result = objectives.contrast(energy_fn, self.levels, t, pair.positive, pair.negative)
        return result.loss, objectives.watched(result, pair, self.levels, t)

    def chain_options(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> dict[str, Any]:
        """The arguments `num_steps` and `noise_scale` of `samplers.recovery`; see `sampler`."""
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
        if not self.num_chain_steps:
            if num_steps > 1:
                raise ValueError(
                    "this model draws once a level, by the normal approximation; num_steps needs "
                    f"to be left out, got {num_steps}"
                )
            num_steps = 0
        num_steps = num_steps or self.num_chain_steps
        samplers.require_steps(self.levels, num_steps)
        return {"num_steps": num_steps, "noise_scale": self.noise_scale}
