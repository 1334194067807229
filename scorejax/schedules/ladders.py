# SPDX-License-Identifier: Apache-2.0
"""Ladders of noise levels and grids of times, as float64 tables.

They are made with NumPy when a program is built, so that they are exact in whatever precision the
device works; `jnp.asarray` rounds them once, on use.
"""

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

Table = Float[np.ndarray, "n"]

FLOAT32_SPACING = 2.0**-24


def geometric_sigmas(sigma_min: float, sigma_max: float, num_scales: int) -> Table:
    """Noise levels from sigma_max DOWN to sigma_min, each the same fraction of the one before.

    Source: Song & Ermon 2020, arXiv:2006.09011, Sec. 3.2; index 0 is the largest, as there.
    """
    _require_sigma_order("geometric_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "geometric_sigmas needs num_scales")
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_scales))


def ncsnv2_sigmas(sigma_min: float, sigma_max: float, dim: int, *, overlap: float = 0.567) -> Table:
    """Geometric levels for data of `dim` dimensions whose neighbours overlap by `overlap`.

    sigma_max should be the largest distance between two data points (technique 1). `overlap` is
    that of `geometric_ratio`.
    Raises: ValueError unless 2^-24 <= sigma_min < sigma_max, and as `geometric_ratio`. Weaker noise
    is lost in float32 on data in [0, 1]: 2^-24 is its spacing just below 1.
    Source: arXiv:2006.09011, techniques 1 and 2.
    """
    _require_sigma_order("ncsnv2_sigmas", sigma_min, sigma_max)
    if sigma_min < FLOAT32_SPACING:
        raise ValueError(
            f"ncsnv2_sigmas needs sigma_min >= 2^-24 = {FLOAT32_SPACING:.2g}; got {sigma_min}."
        )
    # Rounding the number of steps down gives the number of levels of every published ladder;
    # rounding it up, for an overlap no less than `overlap`, would give one level more.
    steps = np.log(sigma_max / sigma_min) / np.log(geometric_ratio(dim, overlap=overlap))
    return geometric_sigmas(sigma_min, sigma_max, 1 + max(int(steps + 1e-9), 1))


def shell_overlap(ratio: float, dim: int) -> float:
    """Probability that N(0, sigma^2 I) puts on the shell of noise `ratio` times as large.

    A shell holds the radii within three standard deviations of their mean. Radii are taken as
    Gaussian, N(sqrt(dim) sigma, sigma^2 / 2), their limit in many dimensions.
    Source: arXiv:2006.09011, Proposition 2 and technique 2.
    """
    _require_dim("shell_overlap", dim)
    _require_ratio("shell_overlap", ratio)
    shift = np.sqrt(2 * dim) * (ratio - 1)
    return float(ndtr(shift + 3 * ratio) - ndtr(shift - 3 * ratio))


def geometric_ratio(dim: int, *, overlap: float = 0.567, largest: float = 2.0) -> float:
    """The ratio of neighbouring noise levels whose shells overlap by `overlap`, at most `largest`.

    The paper recommends an overlap of about 0.5; its ladders have 0.567. By default `largest` is
    returned in up to 17 dimensions, where shells are so thick that the ratio exceeds it or that
    every ratio overlaps enough. An overlap of 0.99 or more is refused: such levels are nearly one.
    Raises: ValueError unless dim >= 1, 0 < overlap < 0.99 and 1 < largest < inf.
    Source: arXiv:2006.09011, technique 2.
    """
    _require_dim("geometric_ratio", dim)
    if not 0 < overlap < 0.99:
        raise ValueError(f"geometric_ratio needs 0 < overlap < 0.99; got {overlap}.")
    if not 1 < largest < np.inf:
        raise ValueError(f"geometric_ratio needs a largest ratio above 1; got {largest}.")
    excess = lambda ratio: shell_overlap(ratio, dim) - overlap
    # The overlap is 0.997 at ratio 1 and rises a little before it falls: a search from there could
    # go astray. Without its first term, which is 1 to many digits, the equation has this solution.
    slope = np.sqrt(2 * dim) - 3
    guess = (np.sqrt(2 * dim) - ndtri(overlap)) / slope if slope > 0 else np.inf
    if not guess < largest:
        return largest
    root = brentq(excess, 1 + (guess - 1) / 2, 1 + (guess - 1) * 2, xtol=1e-15)
    return min(float(root), largest)


def langevin_step_sizes(sigmas: Table, step_size: float) -> Table:
    """Sizes alpha_i = step_size (sigma_i / sigma_L)^2 of the moves at each level.

    Raises: ValueError unless the levels decrease, and they and step_size are positive and finite.
    Source: arXiv:2006.09011, Algorithm 1.
    """
    sigmas = np.asarray(sigmas, np.float64)
    _require_two(sigmas.size, "langevin_step_sizes needs a number of levels")
    if not (np.isfinite(sigmas).all() and (np.diff(sigmas) < 0).all() and sigmas[-1] > 0):
        raise ValueError(
            "langevin_step_sizes needs positive levels that decrease; got "
            f"{np.array2string(sigmas, threshold=6, precision=4)}."
        )
    if not 0 < step_size < np.inf:
        raise ValueError(f"langevin_step_sizes needs step_size > 0; got {step_size}.")
    return step_size * (sigmas / sigmas[-1]) ** 2


def langevin_variance_ratio(relative_step: float, ratio: float, num_steps: int) -> float:
    """Variance after num_steps moves at a level over that of the level, from the level above.

    relative_step is step_size / sigma_L^2. A ratio of 1 is perfect; it is never reached.
    Source: arXiv:2006.09011, Proposition 3.
    """
    _require_ratio("langevin_variance_ratio", ratio)
    shrink, limit = _langevin_recursion(relative_step, num_steps)
    return float(shrink * (ratio**2 - limit) + limit)


def steady_variance_ratio(relative_step: float, ratio: float, num_steps: int) -> float:
    """`langevin_variance_ratio` after many levels, each of which starts where the last one ended.

    It exceeds the value for one level. It is infinite if the levels fall faster than the moves can
    follow.
    """
    _require_ratio("steady_variance_ratio", ratio)
    shrink, limit = _langevin_recursion(relative_step, num_steps)
    kept = shrink * ratio**2
    return float((1 - shrink) * limit / (1 - kept)) if kept < 1 else np.inf


def langevin_step_size(ratio: float, num_steps: int) -> float:
    """The step_size / sigma_L^2 that brings `langevin_variance_ratio` nearest to 1.

    Raises: ValueError unless 1 < ratio < inf and num_steps >= 1.
    Source: arXiv:2006.09011, technique 4.
    """
    if not 1 < ratio < np.inf:
        raise ValueError(f"langevin_step_size needs a ratio of levels above 1; got {ratio}.")

    # The variance ratio, a mixture of two numbers above 1, is never 1: this finds its minimum.
    def slope(step: float) -> float:
        shrink, limit = _langevin_recursion(step, num_steps)
        shrinking = -2 * num_steps * shrink / (1 - step)
        return shrinking * (ratio**2 - limit) + (1 - shrink) * limit**2 / 2

    # The zero of the slope is exact to all digits; a search for the minimum finds half of them.
    return float(brentq(slope, 1e-12, 1 - 1e-12, xtol=1e-15))


def langevin_steps(num_scales: int, max_nfe: int) -> int:
    """Steps per level for at most max_nfe score evaluations in all.

    Raises: ValueError unless 1 <= num_scales <= max_nfe.
    Source: arXiv:2006.09011, technique 4.
    """
    if not 1 <= num_scales <= max_nfe:
        raise ValueError(
            "langevin_steps needs 1 <= num_scales <= max_nfe, a step for each level; "
            f"got num_scales={num_scales}, max_nfe={max_nfe}."
        )
    return max_nfe // num_scales


def _langevin_recursion(relative_step: float, num_steps: int) -> tuple[float, float]:
    """v <- q^2 v + 2 e, num_steps times: the share of the first v that is left, and the limit."""
    if not 0 < relative_step < 2:
        raise ValueError(
            f"Langevin dynamics needs 0 < step_size / sigma_L^2 < 2; got {relative_step}."
        )
    if not num_steps >= 1:
        raise ValueError(f"Langevin dynamics needs at least 1 step per level; got {num_steps}.")
    return (1 - relative_step) ** (2 * num_steps), 1 / (1 - relative_step / 2)


def rho_sigmas(sigma_min: float, sigma_max: float, num_scales: int, *, rho: float = 7.0) -> Table:
    """Noise levels from sigma_max DOWN to sigma_min, evenly spaced in sigma^(1 / rho).

    Source: Karras et al. 2022, arXiv:2206.00364, Eq. 5.
    """
    _require_sigma_order("rho_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "rho_sigmas needs num_scales")
    # Powers round the ends, which callers use as the levels of t_max and t_min: they are put back.
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
    """Noise levels of the cosine chain from sigma_max DOWN to sigma_min, at even steps.

    Step j of the chain has the level u_j with u_M = 0 and u_{j-1}^2 + 1 = (u_j^2 + 1) r, where 1 /
    r is the ratio of the chain's squared scales, at least `smallest_ratio`.
    Raises: ValueError unless 0 < sigma_min < sigma_max, num_scales >= 2, and the chain has at least
    num_scales levels between them.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (iDDPM column).
    """
    _require_sigma_order("improved_ddpm_sigmas", sigma_min, sigma_max)
    _require_two(num_scales, "improved_ddpm_sigmas needs num_scales")
    steps = np.arange(chain_length + 1)
    squared_scale = np.sin(np.pi / 2 * steps / chain_length / (offset + 1)) ** 2
    ratio = np.maximum(squared_scale[:-1] / squared_scale[1:], smallest_ratio)
    # The product runs from the clean end, M, which has no noise, to step j.
    levels = np.sqrt(np.cumprod(1 / ratio[::-1])[::-1] - 1)
    levels = levels[(levels >= sigma_min) & (levels <= sigma_max)]
    _require_two(len(levels), "improved_ddpm_sigmas needs levels between sigma_min and sigma_max,")
    if num_scales > len(levels):
        raise ValueError(
            f"improved_ddpm_sigmas needs num_scales <= {len(levels)}, the levels that a chain of "
            f"{chain_length} has between sigma_min and sigma_max; got {num_scales}"
        )
    return levels[np.round(np.linspace(0, len(levels) - 1, num_scales)).astype(int)]


def linear_betas(beta_min: float, beta_max: float, num_scales: int) -> Table:
    """Noise variances of the DDPM chain, linear from beta_min / n to beta_max / n.

    beta_min and beta_max are the rates of the VP SDE, to which the chain tends as n grows. The
    published chain has 0.1, 20 and 1000.
    Raises: ValueError unless num_scales >= 2 and 0 <= beta_min < beta_max < num_scales.
    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4.
    """
    _require_two(num_scales, "linear_betas needs num_scales")
    if not 0 <= beta_min < beta_max < num_scales:
        raise ValueError(
            "linear_betas needs 0 <= beta_min < beta_max < num_scales, or a beta leaves [0, 1); "
            f"got beta_min={beta_min}, beta_max={beta_max}, num_scales={num_scales}."
        )
    return np.linspace(beta_min / num_scales, beta_max / num_scales, num_scales)


def alpha_products(betas: Table) -> Table:
    """Running products of 1 - beta: the squared scale of x_i given x_0."""
    return np.cumprod(1 - betas)


def time_grid(t_max: float, t_min: float, num_steps: int) -> Table:
    """The num_steps times, evenly spaced from t_max DOWN to t_min, at which a sampler moves.

    Raises: ValueError unless 0 <= t_min < t_max and num_steps >= 2.
    """
    if not 0 <= t_min < t_max:
        raise ValueError(f"time_grid needs 0 <= t_min < t_max; got t_min={t_min}, t_max={t_max}.")
    _require_two(num_steps, "time_grid needs num_steps")
    return np.linspace(t_max, t_min, num_steps)


def _require_dim(name: str, dim: int) -> None:
    if not dim >= 1:
        raise ValueError(f"{name} needs dim >= 1; got {dim}.")


def _require_ratio(name: str, ratio: float) -> None:
    if not 0 < ratio < np.inf:
        raise ValueError(f"{name} needs a positive, finite ratio of levels; got {ratio}.")


def _require_two(count: int, what: str) -> None:
    if count < 2:
        raise ValueError(f"{what} >= 2; got {count}.")


def _require_sigma_order(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(
            f"{name} needs 0 < sigma_min < sigma_max; got "
            f"sigma_min={sigma_min}, sigma_max={sigma_max}."
        )
