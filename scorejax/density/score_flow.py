# SPDX-License-Identifier: Apache-2.0
"""Density by a score model of vectors: the exact likelihood of its probability flow.

The noise at log-ratio l = log(std / scale) is that of the VP SDE, x_l = scale x + std z with
scale^2 + std^2 = 1. A network F learns std x - scale z, given x_l; the score is then
-x_l + (scale / std) F, which is right for N(0, I) where F is zero. Along the probability flow

    dx / dl = -std scale F(x, l),    d log p / dl = std scale div F(x, l),

without the factor 1 / std that makes the flow in t stiff near the data. The divergence of F is
exact and as cheap as F, see `models.vector_field`.

Source: Song et al. 2021, arXiv:2011.13456, Appendix D.2; the target is v of Salimans and Ho 2022,
arXiv:2202.00512, with its sign changed; likelihood weighting, Song, Durkan et al. 2021,
arXiv:2101.09258.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax import ode
from scorejax.density.fitting import Training, minimize
from scorejax.density.rows import Rows, checked_rows
from scorejax.models.vector_field import VectorField
from scorejax.numerics import expand, gaussian_log_prob
from scorejax.objectives.denoising import (
    denoising_score_matching,
    half_sum,
    likelihood_times,
    likelihood_weighting,
    log_noise_to_signal,
    low_discrepancy,
)
from scorejax.random import Rng, normal, row_keys
from scorejax.sdes import VPSDE
from scorejax.typing import PyTree, ScoreFn

LABEL_SCALE = 4.0
"""Factor of the log-ratio in the network's label, which resolves features of width 1/4 in it."""
FIRST_STEP = 0.02
"""First step of the solver, as a fraction of the range of log-ratios."""
SDE = VPSDE(t_min=1e-3)
"""Its density at t_min is that of rows with noise of standard deviation 0.01."""
TRAINING = Training(num_epochs=200, learning_rate=2e-3, patience=30)
"""Denoising takes more steps than maximum likelihood, whose gradients are less noisy."""


class ScoreFlow(flax.struct.PyTreeNode):
    """A network F, its variables, and its held-out loss: a bound of -log p up to a constant."""

    variables: PyTree
    held_out_loss: Array
    network: Any = flax.struct.field(pytree_node=False)
    sde: VPSDE = flax.struct.field(pytree_node=False)


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    hidden: int = 256,
    sde: VPSDE = SDE,
    training: Training = TRAINING,
) -> ScoreFlow:
    """Fits the score to rows of about mean 0 and variance 1, by denoising.

    The density is that of the rows with the noise of `sde` at its t_min.
    Raises: ValueError for rows as `rows.checked_rows`, t_min of 0, or an option out of range.
    """
    x = checked_rows(x)
    network = VectorField(x.shape[1], hidden)
    init_rng, fit_rng = jax.random.split(rng)
    variables = jax.jit(network.init)(init_rng, x[:1], x[:1, 0])
    fitted = minimize(fit_rng, network, variables, _Denoising(sde), x, training)
    return ScoreFlow(fitted.variables, jnp.asarray(fitted.held_out_loss, x.dtype), network, sde)


def score_fn(params: ScoreFlow) -> ScoreFn:
    """The score (x, t) -> grad log p_t(x) of the noisy rows, for samplers and likelihoods."""
    return _score_fn(params.sde, functools.partial(params.network.apply, params.variables))


def log_prob(
    params: ScoreFlow,
    x: Float[Array, "b d"],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1024,
) -> Float[Array, "b"]:
    """Log-density of each row, in nats; NaN for a row whose solve did not finish.

    `rtol` and `atol` are tolerances of the solver, about those of the answer.
    """
    apply = functools.partial(params.network.apply, params.variables)
    with jax.default_matmul_precision("highest"):  # as in the solve
        trace_kernel = apply(method="trace_kernel")

    def drift(state: tuple[Array, Array], log_ratio: Array) -> tuple[Array, Array]:
        label = LABEL_SCALE * log_ratio[None]
        value, divergence = apply(state[0][None], label, trace_kernel, method="with_divergence")
        product = _std_scale(log_ratio)
        return -product * value[0], -product * divergence[0]

    def solve(x: Float[Array, "d"]) -> tuple[Array, Array]:
        start = x, jnp.zeros((), x.dtype)
        options = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
        return _solve(params.sde, drift, start, norm=ode.largest_root_mean_square, **options)

    latent, change = jax.vmap(solve)(x)
    return gaussian_log_prob(latent, 1.0) + change


def sample(rng: Rng, params: ScoreFlow, num: int, *, tolerance: float = 1e-4) -> Array:
    """Draws rows (num, d); row i is a function of key i, by default of `rng` and i alone."""
    apply = functools.partial(params.network.apply, params.variables)

    def drift(x: Float[Array, "d"], log_ratio: Array) -> Float[Array, "d"]:
        return -_std_scale(log_ratio) * apply(x[None], LABEL_SCALE * log_ratio[None])[0]

    options = {"rtol": tolerance, "atol": tolerance, "max_steps": 1024, "backwards": True}
    latent = normal(rng if rng.ndim else row_keys(rng, num), (num, params.network.dim))
    return jax.vmap(lambda z: _solve(params.sde, drift, z, **options))(latent)


def _solve(
    sde: VPSDE, drift: ode.Drift, start: PyTree, *, backwards: bool = False, **options: Any
) -> PyTree:
    """The state at the other end of the range of log-ratios."""
    # Numbers, also where log_prob is compiled: (std / scale)^2 = exp(integral of beta) - 1.
    ends = [math.log(math.expm1(sde.integrated_beta(t))) / 2 for t in (sde.t_min, sde.t_max)]
    ends = ends[::-1] if backwards else ends
    return ode.dormand_prince(drift, start, *ends, first_step=FIRST_STEP, **options).state


def _std_scale(log_ratio: Array) -> Array:
    """std * scale of variance-preserving noise."""
    return 1 / (2 * jnp.cosh(log_ratio))


def _score_fn(sde: VPSDE, network: Any) -> ScoreFn:
    def score(x: Float[Array, "b d"], t: Float[Array, "b"]) -> Float[Array, "b d"]:
        log_ratio = log_noise_to_signal(sde, t) / 2
        return expand(jnp.exp(-log_ratio), x) * network(x, LABEL_SCALE * log_ratio) - x

    return score


@dataclasses.dataclass(frozen=True)
class _Denoising:
    """The loss of `fitting.minimize`: hashable, so that equal fits share a compilation."""

    sde: VPSDE

    def __call__(
        self, network: VectorField, variables: PyTree, rng: PRNGKeyArray, x: Float[Array, "b d"]
    ) -> Float[Array, "b"]:
        return denoising_score_matching(
            _score_fn(self.sde, functools.partial(network.apply, variables)),
            self.sde,
            rng,
            x,
            time_sampler=functools.partial(likelihood_times, draw=low_discrepancy),
            weighting=likelihood_weighting,
            reduction=half_sum,
        )
