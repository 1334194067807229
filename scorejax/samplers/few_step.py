# SPDX-License-Identifier: Apache-2.0
"""EDM's samplers for tens of network calls: Heun's method, and Euler's.

`heun` and `euler` draw from any SDE by its score. Divided by its scale, every SDE is x_0 plus noise
of level sigma; the samplers take sigma down EDM's grid. `follow` is the algorithm itself, for a
denoiser and any grid. A `Path` says how x and sigma depend on the variable that is discretised,
which is sigma itself unless one repeats the paper's comparisons with other samplers.

Source: Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.numerics import expand
from scorejax.preconditioning import DenoiserFn, noise_level_range, score_fn_to_denoiser
from scorejax.random import Rng, normal, split
from scorejax.samplers.predictors import X
from scorejax.schedules import rho_sigmas
from scorejax.sdes import SDE
from scorejax.typing import Sampled, ScoreFn, Shape

Scalar: TypeAlias = Float[Array, ""]


class Path(NamedTuple):
    """x = scale(t) (x_0 + sigma(t) noise), and the time t of a sigma; functions of arrays."""

    scale: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    time: Callable[[Array], Array]


SIGMA_PATH = Path(jnp.ones_like, lambda t: t, lambda sigma: sigma)
"""EDM's choice: the variable is the noise level, and x is not scaled."""


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that is added before every step; it corrects errors of earlier steps.

    A level sigma in [sigma_min, sigma_max] rises by sigma min(amount / num_steps, sqrt(2) - 1)
    before a step; the noise is inflated by noise_std. The sampler is deterministic if amount = 0.
    Source: arXiv:2206.00364, Algorithm 2.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise_std: float = 1.0

    def raised(self, sigmas: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """The levels to which the noise levels of a grid rise before each step."""
        gamma = min(self.amount / len(sigmas), math.sqrt(2) - 1)
        inside = (sigmas >= self.sigma_min) & (sigmas <= self.sigma_max)
        return sigmas * (1 + gamma * inside)


NO_CHURN = Churn()


def edm_step(
    denoiser: DenoiserFn,
    x: X,
    t: Scalar,
    t_raised: Scalar,
    t_next: Scalar,
    z: X | None,
    *,
    path: Path = SIGMA_PATH,
    alpha: float | None = 1.0,
    noise_std: float = 1.0,
) -> X:
    """One step from t to t_next: churn up to t_raised with the noise z, Euler step, correction.

    The correction averages the slope with its value `alpha` of the way along the Euler step: 1 is
    Heun's method, 1 / 2 the midpoint method, None Euler's without correction. Without z there is no
    churn. Makes two evaluations, one if alpha is None.
    Source: arXiv:2206.00364, Algorithms 2 and 3 (Appendix D) and Eq. 4.
    """

    def slope(x: X, t: Scalar) -> X:
        scale, scale_rate = jax.jvp(path.scale, (t,), (jnp.ones_like(t),))
        sigma, sigma_rate = jax.jvp(path.sigma, (t,), (jnp.ones_like(t),))
        denoised = denoiser(x / scale, jnp.full(x.shape[:1], sigma, x.dtype))
        relative = sigma_rate / sigma
        return (relative + scale_rate / scale) * x - relative * scale * denoised

    if z is not None:
        # Rounding can make the difference of equal levels negative.
        added = jnp.sqrt(jnp.maximum(path.sigma(t_raised) ** 2 - path.sigma(t) ** 2, 0))
        scale = path.scale(t_raised)
        x = scale / path.scale(t) * x + added * scale * noise_std * z
    h = t_next - t_raised
    d = slope(x, t_raised)
    if alpha is None:
        return x + h * d
    d_probe = slope(x + alpha * h * d, t_raised + alpha * h)
    return x + h * ((1 - 1 / (2 * alpha)) * d + d_probe / (2 * alpha))


def follow(
    rng: Rng,
    denoiser: DenoiserFn,
    x: Float[Array, "b *d"],
    sigmas: Float[np.ndarray, "n"],
    *,
    path: Path = SIGMA_PATH,
    alpha: float | None = 1.0,
    churn: Churn = NO_CHURN,
    denoise: bool = True,
) -> Float[Array, "b *d"]:
    """Takes x, in units of the path, down the decreasing noise levels `sigmas` and on to t = 0.

    The last step is Euler's: one evaluation; without `denoise` x stays at the last level. Each
    other step makes two, one if alpha is None; see `edm_step`. With keys (b,) each row draws the
    noise of its churn from its own key.
    """
    raised = churn.raised(sigmas)
    t = path.time(jnp.asarray(sigmas, x.dtype))
    t_raised = jnp.where(jnp.asarray(raised > sigmas), path.time(jnp.asarray(raised, x.dtype)), t)
    keys = split(rng, len(sigmas))
    options = {"path": path, "noise_std": churn.noise_std}

    def step(x: X, inputs: tuple) -> tuple[X, None]:
        t, t_raised, t_next, key = inputs
        z = normal(key, x.shape, x.dtype) if churn.amount else None
        return edm_step(denoiser, x, t, t_raised, t_next, z, alpha=alpha, **options), None

    x, _ = jax.lax.scan(step, x, (t[:-1], t_raised[:-1], t[1:], keys[:-1]))
    if not denoise:
        return x
    z = normal(keys[-1], x.shape, x.dtype) if churn.amount else None
    end = jnp.zeros_like(t[-1])
    return edm_step(denoiser, x, t[-1], t_raised[-1], end, z, alpha=None, **options)


def heun(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    churn: Churn = NO_CHURN,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples by Heun's method in 2 num_steps - 1 evaluations, from any SDE by its score.

    EDM's grid takes the noise level std / scale from sigma_max to sigma_min, by default the levels
    of t_max and sampling_t_min; the last step removes the noise that is left. Without `denoise`
    that step and its evaluation are left out, and x is the SDE's x_t at sigma_min. Starts from
    x_init, which is data plus noise of level sigma_max, or by default from such noise alone. With
    keys (b,) each row draws from its own key. Churn leaves levels alone that it might raise beyond
    the level of t_max: those above that level over the root of 2.

    Raises: ValueError unless 0 < sigma_min < sigma_max, sigma_max is at most the level of t_max,
    and num_steps >= 2.
    Source: arXiv:2206.00364, Algorithm 2.
    """
    x, sigmas, chain_rng, churn = _start(
        rng, shape, sde, num_steps, sigma_min, sigma_max, rho, churn, x_init
    )
    denoiser = score_fn_to_denoiser(sde, score_fn)
    x = follow(chain_rng, denoiser, x, sigmas, churn=churn, denoise=denoise)
    return Sampled(_scaled(sde, x, sigmas, denoise), 2 * (num_steps - 1) + denoise)


def euler(
    rng: Rng,
    score_fn: ScoreFn,
    shape: Shape,
    *,
    sde: SDE,
    num_steps: int = 36,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    churn: Churn = NO_CHURN,
    denoise: bool = True,
    x_init: Float[Array, "b *d"] | None = None,
) -> Sampled:
    """Draws samples as `heun` does, by Euler's method in num_steps evaluations, one less if noisy.

    Raises: ValueError as `heun`.
    """
    x, sigmas, chain_rng, churn = _start(
        rng, shape, sde, num_steps, sigma_min, sigma_max, rho, churn, x_init
    )
    denoiser = score_fn_to_denoiser(sde, score_fn)
    x = follow(chain_rng, denoiser, x, sigmas, alpha=None, churn=churn, denoise=denoise)
    return Sampled(_scaled(sde, x, sigmas, denoise), num_steps - 1 + denoise)


def _scaled(sde, x, sigmas, denoise):
    """From data plus noise to the SDE's x_t at the last noise level; at none both are the same."""
    if denoise:
        return x
    t = sde.time_of_sigma(jnp.full(x.shape[:1], sigmas[-1], x.dtype))
    return expand(sde.marginal(t)[0], x) * x


def _start(rng, shape, sde, num_steps, sigma_min, sigma_max, rho, churn, x_init):
    """The start x, the noise levels, the key of the chain, and the churn that t_max allows."""
    lowest, highest = noise_level_range(sde, sde.sampling_t_min)
    sigma_min = lowest if sigma_min is None else sigma_min
    sigma_max = highest if sigma_max is None else sigma_max
    if sigma_max > highest * (1 + 1e-6):
        raise ValueError(f"sigma_max must be at most {highest:g}, that of t_max; got {sigma_max}.")
    sigmas = rho_sigmas(sigma_min, sigma_max, num_steps, rho=rho)
    churn = dataclasses.replace(churn, sigma_max=min(churn.sigma_max, highest / math.sqrt(2)))
    start_rng, chain_rng = split(rng)
    x = sigma_max * normal(start_rng, shape) if x_init is None else x_init
    return x, sigmas, chain_rng, churn
