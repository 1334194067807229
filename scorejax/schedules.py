# SPDX-License-Identifier: Apache-2.0
"""Ladders of noise levels and grids of times, as float64 tables.

They are made with NumPy when a program is built, so that they are exact whatever precision the
device works in; `jnp.asarray` rounds them once, on use.
"""

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, "n"]


def geometric_sigmas(sigma_min: float, sigma_max: float, num_scales: int) -> Table:
    """Standard deviations from sigma_max DOWN to sigma_min, each the same fraction of the last.

    Source: Song & Ermon 2020, arXiv:2006.09011, Sec. 3.2; index 0 is the largest, as there.
    """
    _require_sigma_order("geometric_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "geometric_sigmas needs num_scales")
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))


def rho_sigmas(sigma_min: float, sigma_max: float, num_scales: int, *, rho: float = 7.0) -> Table:
    """Noise levels from sigma_max DOWN to sigma_min, evenly spaced in sigma^(1 / rho).

    Source: Karras et al. 2022, arXiv:2206.00364, Eq. 5.
    """
    _require_sigma_order("rho_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "rho_sigmas needs num_scales")
    # Powers round the ends, by which a caller may mean the ends of time: they are put back.
    inner = np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_scales)[1:-1] ** rho
    return np.array([sigma_max, *inner, sigma_min])


def improved_ddpm_sigmas(
    sigma_min: float,
    sigma_max: float,
    num_scales: int,
    *,
    chain_length: int = 1000,
    offset: float = 0.008,
    smallest_ratio: float = 0.001,
) -> Table:
    """Noise levels of the cosine chain between sigma_max and sigma_min, DOWN, at even steps.

    Step j of the chain has the level u_j with u_M = 0 and u_{j-1}^2 + 1 = (u_j^2 + 1) r, where 1 /
    r is the ratio of the chain's squared scales, at least `smallest_ratio`.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (iDDPM column).
    """
    _require_sigma_order("improved_ddpm_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "improved_ddpm_sigmas needs num_scales")
    steps = np.arange(chain_length + 1)
    squared_scale = np.sin(np.pi / 2 * steps / chain_length / (offset + 1)) ** 2
    ratio = np.maximum(squared_scale[:-1] / squared_scale[1:], smallest_ratio)
    # The product from the clean end, M, up to step j; that end itself has no noise.
    levels = np.sqrt(np.cumprod(1 / ratio[::-1])[::-1] - 1)
    levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    _require_two(len(levels), "improved_ddpm_sigmas needs levels between sigma_min and sigma_max,")
    return levels[np.round(np.linspace(0, len(levels) - 1, num_scales)).astype(int)]


def linear_betas(beta_min: float, beta_max: float, num_scales: int) -> Table:
    """Noise variances of the DDPM chain, linear from beta_min / n to beta_max / n.

    beta_min and beta_max are the rates of the VP SDE, so that the chain tends to it as n grows; the
    published chain has 0.1, 20 and 1000. Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.
    """
    _require_two(num_scales, "linear_betas needs num_scales")
    if not 0 <= beta_min < beta_max < num_scales:
        raise ValueError(
            "linear_betas needs 0 <= beta_min < beta_max < num_scales, or a beta leaves [0, 1); "
            f"got beta_min={beta_min}, beta_max={beta_max}, num_scales={num_scales}."
        )
    return np.linspace(beta_min / num_scales, beta_max / num_scales, num_scales)


def alpha_products(betas: Table) -> Table:
    """The running products of 1 - beta: the square of the scale of x_i given x_0."""
    return np.cumprod(1 - betas)


def time_grid(t_max: float, t_min: float, num_steps: int) -> Table:
    """The num_steps times, evenly spaced from t_max DOWN to t_min, at which a sampler moves."""
    if not 0 <= t_min < t_max:
        raise ValueError(f"time_grid needs 0 <= t_min < t_max; got t_min={t_min}, t_max={t_max}.")
    _require_two(num_steps, "time_grid needs num_steps")
    return np.linspace(t_max, t_min, num_steps)


def _require_two(count: int, what: str) -> None:
    if count < 2:
        raise ValueError(f"{what} >= 2; got {count}.")


def _require_sigma_order(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"{name} needs 0 < sigma_min < sigma_max; got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}."
        )
