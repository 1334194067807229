# SPDX-License-Identifier: Apache-2.0
"""Training of denoisers: add noise of a random level and predict the clean data.

The loss of one example is weighting(sigma) * reduction((D(x + sigma noise; sigma) - x)^2). EDM
compares networks under three pairs of a distribution of levels and a weighting:

    log_normal_levels, edm_weighting;  vp_levels, noise_weighting;  ve_levels, noise_weighting.

Source: Karras et al. 2022, arXiv:2206.00364, Section 5 and Table 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.numerics import expand, mean_except_batch
from scorejax.preconditioning import DenoiserFn, noise_level
from scorejax.random import Rng, draw_rows, normal, split
from scorejax.sdes import VPSDE
from scorejax.typing import Shape

LevelSampler = Callable[[PRNGKeyArray, Shape], Array]
"""(key, shape) -> noise levels of that shape: std / scale, in units of the data."""
LevelWeighting = Callable[[Float[Array, "b"]], Float[Array, "b"]]
Reduction = Callable[[Float[Array, "b *d"]], Float[Array, "b"]]


def log_normal_levels(
    rng: PRNGKeyArray, shape: Shape, *, mean: float = -1.2, std: float = 1.2
) -> Float[Array, "*shape"]:
    """Levels, in units of the data, with a normal logarithm: most where training matters most."""
    return log_normal_level(jax.random.normal(rng, shape), mean=mean, std=std)


def log_normal_level(
    z: Float[Array, "*n"], *, mean: float = -1.2, std: float = 1.2
) -> Float[Array, "*n"]:
    """The level, in units of the data, for a standard normal number z."""
    return jnp.exp(std * z + mean)


def vp_levels(
    rng: PRNGKeyArray, shape: Shape, *, sde: VPSDE | None = None
) -> Float[Array, "*shape"]:
    """Levels std / scale, in units of the data, at times uniform on the VP SDE's [t_min, t_max]."""
    return vp_level(jax.random.uniform(rng, shape), sde=sde)


def vp_level(u: Float[Array, "*n"], *, sde: VPSDE | None = None) -> Float[Array, "*n"]:
    """The level std / scale, in units of the data, at the time t_max - u (t_max - t_min).

    u lies in [0, 1]; u = 0 is the noisiest.
    """
    sde = sde or VPSDE()
    t = sde.t_max - u * (sde.t_max - sde.t_min)
    return noise_level(sde, t.reshape(-1)).reshape(u.shape)


def ve_levels(
    rng: PRNGKeyArray, shape: Shape, *, sigma_min: float = 0.02, sigma_max: float = 100.0
) -> Float[Array, "*shape"]:
    """Levels, in units of the data, with a uniform logarithm."""
    return ve_level(jax.random.uniform(rng, shape), sigma_min=sigma_min, sigma_max=sigma_max)


def ve_level(
    u: Float[Array, "*n"], *, sigma_min: float = 0.02, sigma_max: float = 100.0
) -> Float[Array, "*n"]:
    """The level, in units of the data, for u in [0, 1]; u = 1 is the noisiest."""
    return sigma_min * (sigma_max / sigma_min) ** u


def noise_weighting(sigma: Float[Array, "b"]) -> Float[Array, "b"]:
    """The weight 1 / sigma^2, with which the error of the predicted noise has weight one."""
    return 1 / sigma**2


def edm_weighting(sigma: Float[Array, "b"], *, sigma_data: float = 0.5) -> Float[Array, "b"]:
    """The weight 1 / c_out^2, with which the loss of EDM's network has equal size at all levels.

    Source: arXiv:2206.00364, Table 1.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def denoiser_matching(
    denoiser: DenoiserFn,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    levels: LevelSampler = log_normal_levels,
    weighting: LevelWeighting = edm_weighting,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Weighted squared error of a denoiser at one random level and noise draw per example."""
    level_rng, noise_rng = split(rng)
    sigma = draw_rows(levels, level_rng, x.shape[:1]).astype(x.dtype)
    noise = normal(noise_rng, x.shape, x.dtype)
    return denoiser_error(denoiser, sigma, noise, x, weighting=weighting, reduction=reduction)


def denoiser_error(
    denoiser: DenoiserFn,
    sigma: Float[Array, "b"],
    noise: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    weighting: LevelWeighting = edm_weighting,
    reduction: Reduction = mean_except_batch,
) -> Float[Array, "b"]:
    """Weighted squared error of a denoiser at x + sigma noise.

    Source: arXiv:2206.00364, Eq. 2, with the weighting of its Section 5.
    """
    error = denoiser(x + expand(sigma, x) * noise, sigma) - x
    return weighting(sigma) * reduction(error**2)
