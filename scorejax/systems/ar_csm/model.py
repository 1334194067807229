# SPDX-License-Identifier: Apache-2.0
"""A univariate score for each dimension, and the densities and samples that follow from them."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scorejax.choices import choose
from scorejax.data.grey_levels import GreyLevels
from scorejax.data.toy import PlaneDistribution
from scorejax.data.view import DataView, ImageView
from scorejax.density import autoregressive as densities
from scorejax.evaluate.progress import Metrics
from scorejax.likelihood import bits_per_dim
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.univariate import MixtureHead
from scorejax.noise_flow import CALLS_PER_STEP, NUM_STEPS, at_sigma
from scorejax.numerics import sum_except_batch
from scorejax.quadrature import level_cells
from scorejax.random import Rng
from scorejax.samplers import autoregressive as samplers
from scorejax.score_model.options import EvaluationOptions
from scorejax.score_model.sampling import Draw
from scorejax.systems.ar_csm import evaluation
from scorejax.systems.ar_csm.objectives import (
    Bound,
    Objective,
    apply,
    causal_denoised,
    log_probs,
)
from scorejax.systems.ar_csm.sampling import SAMPLERS
from scorejax.typing import Array, Batch, HeadFn, PRNGKeyArray, Variables

NOISE_TAIL = 6.0
"""Standard deviations of the largest noise that the quadrature goes beyond the data."""


class LangevinOptions(NamedTuple):
    """The step size in units of the smallest sigma squared, and the steps at each level."""

    step_size: float
    num_steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class ConditionalModel:
    """Scores of univariate conditionals, by one network: a trunk for contexts, and a head."""

    data: DataView
    network: AutoregressiveModel
    objective: Objective
    held_out_objective: Objective
    """Without weights of the model's own, which would rank wider conditionals as better."""
    sigmas: np.ndarray | None
    """Descending noise levels that the head was trained at; None: without noise."""
    noisy_context: bool
    """Whether contexts were trained on noisy values, as for denoising."""
    levels: GreyLevels | None
    """The grey levels of images whose contexts are discrete; None for continuous data."""
    low: float
    high: float
    """The range of the quadrature."""
    num_cells: int
    langevin: LangevinOptions | None
    """None without noise levels."""
    tx: optax.GradientTransformation
    eval_options: EvaluationOptions
    truth: PlaneDistribution | None = None
    """The distribution of the data, where it is known."""
    data_noise: float = 0.0
    """Noise that exact score matching adds to the data."""
    sampler_names: ClassVar[tuple[str, ...]] = tuple(SAMPLERS)
    """Names of the samplers, the default first."""

    @property
    def sigma(self) -> float | None:
        """Noise of the data whose density the model has; None: no noise."""
        return None if self.sigmas is None else float(self.sigmas[-1])

    @property
    def noise(self) -> float:
        """Standard deviation of the noise in the data whose density the model has."""
        return self.data_noise if self.sigma is None else self.sigma

    @property
    def closed_form(self) -> bool:
        """Whether conditionals have a density without quadrature: those of noiseless mixtures."""
        return self.sigma is None and isinstance(self.network.univariate, MixtureHead)

    @property
    def flows(self) -> bool:
        """Whether densities and samples follow the flow along the noise levels."""
        return self.sigmas is not None and len(self.sigmas) > 1

    @property
    def flow_options(self) -> dict[str, Any]:
        """The ends of the noise, and the quadrature of the noisiest densities."""
        smaller, larger = float(self.sigmas[-1]), float(self.sigmas[0])
        ends = {"low": self.low - NOISE_TAIL * larger, "high": self.high + NOISE_TAIL * larger}
        return {"sigmas": (smaller, larger), **ends, "num_cells": self.num_cells}

    def bind(self, variables: Variables, dropout_rng: Rng | None = None) -> Bound:
        """The network with these variables, and with dropout if there is a key."""
        call = functools.partial(apply, self.network, variables)
        return Bound(
            contexts=functools.partial(call("contexts"), dropout_rng=dropout_rng),
            head=call("head"),
            log_prob=call("log_prob"),
            cdf=call("cdf"),
            variance=call("variance"),
        )

    def head(self, variables: Variables) -> HeadFn:
        """The head at the smallest noise level."""
        head = apply(self.network, variables, "head")
        return head if self.sigma is None else at_sigma(head, self.sigma)

    def losses(self, variables: Variables, rng: Rng, x: Array) -> Array:
        """The held-out objective of each example, without dropout, (b,)."""
        with self.evaluation_precision():
            return self.held_out_objective(self.bind(variables), rng, x)

    def evaluation_precision(self) -> contextlib.AbstractContextManager:
        """Sets the precision of products in densities, held-out losses and exact samples."""
        return jax.default_matmul_precision(self.eval_options.eval_matmul_precision)

    def denoised(self, variables: Variables, x: Array, sigma: Array) -> Array:
        """The mean of each dimension given noisy values x (b, *d), noise sigma (b,), up to itself.

        It is the causal estimate E[x_d | noisy x_1 .. x_d]; later dimensions are not used.
        Raises: ValueError unless contexts are of noisy values.
        """
        if not self.noisy_context:
            raise ValueError(
                "denoising needs contexts of noisy values; train with noisy_context=True"
            )
        return causal_denoised(self.bind(variables), x, sigma)

    def conditionals(self, variables: Variables, x: Array) -> densities.Conditionals:
        """log p(x_d | x_<d), in nats, with an estimate of its error.

        A probability for x (b, h, w, c) that are values of grey levels, else a density. Where x is
        NaN, so are both.
        """
        with self.evaluation_precision():
            terms = self._conditionals(variables, x)
        # A level is a whole number, and would be one of NaN too.
        return densities.Conditionals(*(jnp.where(jnp.isnan(x), x, term) for term in terms))

    def _conditionals(self, variables: Variables, x: Array) -> densities.Conditionals:
        bound, head = self.bind(variables), self.head(variables)
        c = bound.contexts(x)
        if self.closed_form:
            exact = log_probs(bound, self.levels, x, c)
            return densities.Conditionals(exact, jnp.zeros_like(exact))
        if self.flows:
            flow = self.flow_options
            if self.levels is None:
                return densities.flow_log_probs(bound.head, c, x, **flow)
            level, bounds = self.levels.index(x), self.levels.bounds
            return densities.flow_discrete_log_probs(bound.head, c, level, bounds=bounds, **flow)
        if self.levels is None:
            ends = {"low": self.low, "high": self.high, "num_cells": self.num_cells}
            return densities.conditional_log_probs(head, c, x, **ends)
        return densities.discrete_log_probs(head, c, self.levels.index(x), **self.level_options)

    @property
    def level_options(self) -> dict[str, Any]:
        """The cells of the quadrature over grey levels of one noise level."""
        grid = {"bounds": self.levels.bounds, "margin": self.levels.bounds[0] - self.low}
        return grid | {"cells_per_level": max(4, self.num_cells // self.levels.num)}

    def likelihood(self, *, exact: bool = False) -> Callable:
        """measure(variables, {"image" or "x", "rng"}) -> log_prob (b,) in nats, error (b,), nfe.

        Images are as `ImageView.dequantized` returns them and have "bits_per_dim" (b,) too. If
        contexts are of grey levels, log_prob is the probability of the levels. `exact` changes
        nothing: a quadrature is exact up to `error`.
        Raises: ValueError for contexts of noisy values, or if `exact` is asked of grey levels,
        whose probability has no dequantisation to average over.
        """
        self.require_clean_contexts("densities")
        if exact and self.levels is not None:
            raise ValueError(
                "bits/dim of grey levels are exact already, and have no importance-weighted bound"
            )
        data, dim = self.data, math.prod(self.data.shape)

        def measure(variables: Variables, batch: Batch) -> dict[str, Array]:
            x = batch[data.field]
            if self.levels is not None:
                x = self.levels.undequantized(x)
            terms = self.conditionals(variables, x)
            log_prob = sum_except_batch(terms.log_prob)
            measured = {"log_prob": log_prob, "error": sum_except_batch(terms.error)}
            measured["nfe"] = jnp.ones(len(log_prob), jnp.int32)
            if self.levels is not None:
                measured["bits_per_dim"] = -log_prob / (dim * math.log(2))
            elif isinstance(data, ImageView):
                units = {"levels": data.levels, "data_range": data.data_range}
                measured["bits_per_dim"] = bits_per_dim(log_prob, dim, **units)
            return measured

        return measure

    def sampler(self, name: str = "", *, num_steps: int = 0, nfe: int = 0) -> Draw:
        """draw(variables, keys (b,)) -> {"image" in [0, 1], not clipped, or "x", and "nfe"}.

        "inverse_cdf" (the default) and "jacobi" draw the same samples; `num_steps` is the number of
        Langevin steps at each level, for "langevin". "nfe" counts evaluations of the head at one
        value of one dimension, and "jacobi" adds "sweeps" (b,).
        Raises: ValueError for an unknown sampler, "langevin" without noise levels, contexts of
        noisy values, or steps where there are none.
        """
        make = choose("sampler", name or "inverse_cdf", SAMPLERS)
        self.require_clean_contexts("samples")
        if nfe or (num_steps and name != "langevin"):
            given = f"nfe={nfe}" if nfe else f"num_steps={num_steps}"
            fixed = f"the sampler {name or 'inverse_cdf'!r} has a fixed number of evaluations"
            raise ValueError(f"{fixed}; leave out {given}")
        if name == "langevin":
            return make(self, num_steps)
        draw = make(self)

        def precise(variables: Variables, rngs: PRNGKeyArray) -> dict[str, Array]:
            with self.evaluation_precision():
                return draw(variables, rngs)

        return precise

    def require_clean_contexts(self, purpose: str) -> None:
        """Raises ValueError if contexts are of noisy values."""
        if self.noisy_context:
            raise ValueError(
                f"contexts of noisy values serve to denoise; {purpose} need noisy_context=False"
            )

    def invert(self, variables: Variables) -> samplers.Invert:
        """The inverse distribution functions of the conditionals; exact for noiseless mixtures."""
        ends = {"low": self.low, "high": self.high}
        if self.closed_form:
            return samplers.bisected(apply(self.network, variables, "cdf"), **ends)
        if self.flows:
            return samplers.flowed(apply(self.network, variables, "head"), **self.flow_options)
        if self.levels is not None:
            return samplers.tabulated_by_levels(self.head(variables), **self.level_options)
        return samplers.tabulated(self.head(variables), **ends, num_cells=self.num_cells)

    @property
    def calls_to_invert(self) -> int:
        """Evaluations of the head that `invert` makes for one value."""
        if self.closed_form:
            return samplers.NUM_BISECTIONS
        if self.flows:
            return 4 * self.num_cells + NUM_STEPS * CALLS_PER_STEP
        if self.levels is None:
            return 4 * self.num_cells
        return 4 * (len(level_cells(**self.level_options)[0]) - 1) + 1

    def to_output(self, x: Array, nfe: Array) -> dict[str, Array]:
        """Samples in the units of the data."""
        return {self.data.field: self.data.to_data(x), "nfe": nfe}

    def metrics(self) -> Metrics:
        """See `evaluation.metrics`."""
        return evaluation.metrics(self)
