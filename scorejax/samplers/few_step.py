# SPDX-License-Identifier: Apache-2.0
"""Samplers for tens of network calls: the methods of EDM, Heun's and Euler's.

They see every SDE as x_t = s (x_0 + sigma noise) and move along a `Path`, which says how s and
sigma depend on the variable that is discretised: sigma itself for `heun` and `euler`, where s = 1.
`follow` is the general algorithm, for a denoiser, a path and a grid of one's own.

Source: Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.preconditioning import (
    DenoiserFn,
    noise_level,
    noise_level_range,
    score_fn_to_denoiser,
)
from scorejax.samplers.predictors import X
from scorejax.schedules import rho_sigmas
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape

Scalar: TypeAlias = Float[Array, ""]


class Path(NamedTuple):
    """x = scale(t) (x_0 + sigma(t) noise), and the t of a sigma; functions of arrays alike."""

    scale: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    time: Callable[[Array], Array]


SIGMA_PATH = Path(jnp.ones_like, lambda t: t, lambda sigma: sigma)
"""EDM's choice: the variable is the noise level, and x is not scaled."""
VARIANCE_PATH = Path(jnp.ones_like, jnp.sqrt, jnp.square)
"""The variable is the variance of the noise: a VE SDE of constant diffusion."""


def sde_path(sde: SDE) -> Path:
    """The variable is the time of an SDE, and x is scaled as there: its own probability flow."""
    along = lambda function: lambda t: function(t.reshape(-1)).reshape(t.shape)
    return Path(
        along(lambda t: sde.marginal(t)[0]),
        along(lambda t: noise_level(sde, t)),
        along(sde.time_of_sigma),
    )


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that is put back at every step: more of it corrects more errors, and costs steps.

    The level sigma rises by sigma min(amount / num_steps, sqrt(2) - 1) before a step, where it lies
    in [sigma_min, sigma_max]; the noise is inflated by noise_std. amount = 0 is deterministic.
    Source: arXiv:2206.00364, Algorithm 2.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise_std: float = 1.0

    def raised(self, sigmas: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The levels to which the noise levels of a grid rise."""
        gamma = min(self.amount / len(sigmas), math.sqrt(2) - 1)
        inside = (sigmas >= self.sigma_min) & (sigmas <= self.sigma_max)
        return sigmas * (1 + gamma * inside)


NO_CHURN = Churn()


def euler_step(denoiser: DenoiserFn, path: Path, x: X, t: Scalar, t_next: Scalar) -> X:
    """One Euler step of the flow from t to t_next: one evaluation."""
    return x + (t_next - t) * _slope(denoiser, path, x, t)


def heun_step(
    denoiser: DenoiserFn, path: Path, x: X, t: Scalar, t_next: Scalar, *, alpha: float = 1.0
) -> X:
    """One step of second order from t to t_next: two evaluations, at t and a part alpha of the way.

    alpha = 1 is Heun's method, 1 / 2 the midpoint method. Source: arXiv:2206.00364, Appendix D.
    """
    h = t_next - t
    slope = _slope(denoiser, path, x, t)
    probe = _slope(denoiser, path, x + alpha * h * slope, t + alpha * h)
    return x + h * ((1 - 1 / (2 * alpha)) * slope + probe / (2 * alpha))


def churn_step(path: Path, x: X, t: Scalar, t_raised: Scalar, z: X, *, noise_std: float) -> X:
    """Adds the noise z that takes x from t to the higher noise level of t_raised."""
    now, raised = path.sigma(t), path.sigma(t_raised)
    # Rounding can make the difference of equal levels negative.
    added = jnp.sqrt(jnp.maximum(raised**2 - now**2, 0))
    scale = path.scale(t_raised)
    return scale / path.scale(t) * x + added * scale * noise_std * z


def _slope(denoiser: DenoiserFn, path: Path, x: X, t: Scalar) -> X:
    """dx / dt of the probability flow. Source: arXiv:2206.00364, Eq. 4."""
    scale, scale_rate = jax.jvp(path.scale, (t,), (jnp.ones_like(t),))
    sigma, sigma_rate = jax.jvp(path.sigma, (t,), (jnp.ones_like(t),))
    denoised = denoiser(x / scale, jnp.full(x.shape[:1], sigma, x.dtype))
    relative = sigma_rate / sigma
    return (relative + scale_rate / scale) * x - relative * scale * denoised


Step: TypeAlias = Callable[[DenoiserFn, Path, X, Scalar, Scalar], X]


def follow(
    rng: PRNGKeyArray,
    denoiser: DenoiserFn,
    x: Float[Array, "b *d"],
    sigmas: Float[np.ndarray, "n"],
    *,
    step: Step = heun_step,
    path: Path = SIGMA_PATH,
    churn: Churn = NO_CHURN,
    t_end: float = 0.0,
) -> Float[Array, "b *d"]:
    """Takes x, in units of the path, down the noise levels `sigmas` and on to t_end by Euler.

    The levels decrease. Costs one evaluation for the last level, and one of `step` for each other.
    """
    raised = churn.raised(sigmas)
    t = path.time(jnp.asarray(sigmas, x.dtype))
    t_raised = jnp.where(jnp.asarray(raised > sigmas), path.time(jnp.asarray(raised, x.dtype)), t)

    def stir(x: X, t: Scalar, t_raised: Scalar, key: PRNGKeyArray) -> X:
        if not churn.amount:
            return x
        z = jax.random.normal(key, x.shape, x.dtype)
        return churn_step(path, x, t, t_raised, z, noise_std=churn.noise_std)

    def body(x: X, inputs: tuple) -> tuple[X, None]:
        now, lifted, then, key = inputs
        return step(denoiser, path, stir(x, now, lifted, key), lifted, then), None

    keys = jax.random.split(rng, len(sigmas))
    x, _ = jax.lax.scan(body, x, (t[:-1], t_raised[:-1], t[1:], keys[:-1]))
    x = stir(x, t[-1], t_raised[-1], keys[-1])
    return euler_step(denoiser, path, x, t_raised[-1], jnp.asarray(t_end, x.dtype))


def heun(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    churn: Churn = NO_CHURN,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples by Heun's method in 2 num_steps - 1 evaluations, of any SDE by its score.

    The noise levels std / scale run from sigma_max to sigma_min by EDM's grid, by default the
    levels of t_max and of sampling_t_min, and the last step removes what noise is left. x_init (b,
    *d) replaces the start, data plus noise of level sigma_max. Levels above that of t_max over the
    root of 2, which churn might raise beyond it, are not stirred.

    Raises: ValueError unless 0 < sigma_min < sigma_max, sigma_max is no higher than the level of
    t_max, and num_steps >= 2.
    Source: arXiv:2206.00364, Algorithm 2.
    """
    x = _edm(
        heun_step, rng, score_fn, shape, sde, num_steps, (sigma_min, sigma_max), rho, churn, x_init
    )
    return Sampled(x, 2 * num_steps - 1)


def euler(
    rng: PRNGKeyArray,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 36,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    churn: Churn = NO_CHURN,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples as `heun` does, by Euler's method in num_steps evaluations.

    Raises: ValueError as `heun`.
    """
    x = _edm(
        euler_step, rng, score_fn, shape, sde, num_steps, (sigma_min, sigma_max), rho, churn, x_init
    )
    return Sampled(x, num_steps)


def _edm(step, rng, score_fn, shape, sde, num_steps, levels, rho, churn, x_init) -> Array:
    """The samples of `heun` and `euler`."""
    lowest, highest = noise_level_range(sde, sde.sampling_t_min)
    sigma_min, sigma_max = (
        given if given is not None else own
        for given, own in zip(levels, (lowest, highest), strict=True)
    )
    if sigma_max > highest * (1 + 1e-6):
        raise ValueError(f"sigma_max must be at most {highest:g}, that of t_max; got {sigma_max}.")
    sigmas = rho_sigmas(sigma_min, sigma_max, num_steps, rho=rho)
    churn = dataclasses.replace(churn, sigma_max=min(churn.sigma_max, highest / math.sqrt(2)))
    start_rng, chain_rng = jax.random.split(rng)
    x = sigma_max * jax.random.normal(start_rng, shape) if x_init is None else x_init
    return follow(chain_rng, score_fn_to_denoiser(sde, score_fn), x, sigmas, step=step, churn=churn)
