# SPDX-License-Identifier: Apache-2.0
"""Densities on the plane by quadrature: normalisers, divergences from the truth, and pictures.

Integrals are sums over a square grid, by the trapezoidal rule. Where a density is smooth and
vanishes at the border of the window, the error falls faster than any power of the spacing. The
error that is reported is the change from the grid of twice the spacing, which is larger.
"""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8

from scorejax.evaluate.pictures import rendered
from scorejax.samplers.hamiltonian import LogProb

MAX_OUTSIDE = 1e-3
"""Mass outside the window that is not worth a warning."""


class Integral(NamedTuple):
    """A number by quadrature, and how much it changed when the spacing was halved."""

    value: float
    error: float


class PlaneComparison(NamedTuple):
    """A model held against the true density on a window of the plane.

    `log_normalizer` is the logarithm of the model's integral over the window, by which the model is
    divided. `divergence` is KL(truth || model) in nats; it and `total_variation` (0 to 1) are
    integrals over the window.
    """

    log_normalizer: Integral
    divergence: Integral
    total_variation: Integral
    true_outside: float
    """Mass of the truth outside the window."""
    model_outside: float
    """Share of the model's mass in a window of twice the side that is outside this one."""
    true_grid: np.ndarray
    model_grid: np.ndarray
    """`grid_log_prob` of both (num + 1, num + 1), normalised."""


def grid_log_prob(
    log_prob: LogProb, *, limit: float, num: int = 256
) -> Float[np.ndarray, "num+1 num+1"]:
    """Evaluates a log-density, traceable by JAX, on the grid of [-limit, limit]^2.

    Row i and column j belong to y_i and x_j, `num` spacings from -limit to limit.
    Raises: ValueError unless limit > 0 and num is a positive multiple of 4, and if a value is NaN
    or +inf.
    """
    if not 0 < limit < math.inf:
        raise ValueError(f"limit needs to be a positive number; got {limit}")
    if num < 4 or num % 4:
        nearest = 4 * max(1, round(num / 4))
        raise ValueError(f"num needs to be a positive multiple of 4; got {num}, try {nearest}")
    places = jnp.linspace(-limit, limit, num + 1)
    # One row of the grid at a time: the memory of a mixture is that times its components.
    at_row = lambda y: log_prob(jnp.stack([places, jnp.full(places.shape, y)], axis=1))
    values = np.asarray(jax.jit(lambda: jax.lax.map(at_row, places))(), np.float64)
    if np.isnan(values).any() or (values == np.inf).any():
        row, column = np.argwhere(np.isnan(values) | (values == np.inf))[0]
        x, y = float(places[column]), float(places[row])
        raise ValueError(f"log_prob needs values below +inf; got {values[row, column]} at {x, y}")
    return values


def log_integral(values: Float[np.ndarray, "n n"], *, limit: float) -> Integral:
    """Log of the integral over the window of the density whose `grid_log_prob` this is."""
    largest = values.max()
    if largest == -np.inf:
        return Integral(-np.inf, 0.0)
    fine, coarse = _both_integrals(np.exp(values - largest), limit)
    with np.errstate(divide="ignore"):
        return _refined(largest + np.log(fine), largest + np.log(coarse))


def compare(
    true_log_prob: LogProb, log_prob: LogProb, *, limit: float = 2.0, num: int = 256
) -> PlaneComparison:
    """Compares a model, log_prob up to a constant, with the truth, whose density is normalised.

    Evaluates the truth (num + 1)^2 times and the model twice as often. Warns if more than
    `MAX_OUTSIDE` of the mass of either is outside the window. Mass that the model has outside a
    window of twice the side goes unseen.
    Raises: ValueError as `grid_log_prob`.
    """
    truth = grid_log_prob(true_log_prob, limit=limit, num=num)
    model = grid_log_prob(log_prob, limit=limit, num=num)
    wide = grid_log_prob(log_prob, limit=2 * limit, num=num)
    log_z = log_integral(model, limit=limit)
    model = model - log_z.value
    with np.errstate(invalid="ignore"):  # -inf - -inf, where the truth has no mass.
        relative = np.where(truth > -np.inf, np.exp(truth) * (truth - model), 0.0)
    distance = np.abs(np.exp(truth) - np.exp(model)) / 2
    middle = wide[num // 4 : -num // 4, num // 4 : -num // 4]
    inside = log_integral(middle, limit=limit).value - log_integral(wide, limit=2 * limit).value
    result = PlaneComparison(
        log_normalizer=log_z,
        divergence=_refined(*_both_integrals(relative, limit)),
        total_variation=_refined(*_both_integrals(distance, limit)),
        true_outside=-math.expm1(log_integral(truth, limit=limit).value),
        model_outside=-math.expm1(inside),
        true_grid=truth,
        model_grid=model,
    )
    for name, outside in (("truth", result.true_outside), ("model", result.model_outside)):
        if outside > MAX_OUTSIDE:
            warnings.warn(
                f"{outside:.2%} of the mass of the {name} is outside [-{limit:g}, {limit:g}]^2, "
                "which divergences leave out; widen the window by limit",
                stacklevel=2,
            )
    return result


def plane_picture(
    densities: Mapping[str, Float[np.ndarray, "n n"]],
    *,
    limit: float,
    samples: Mapping[str, Float[ArrayLike, "m 2"]] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws normalised densities, each by its `grid_log_prob`, side by side, and then samples.

    All have the colours of the first, the truth: what exceeds its largest value is drawn like it.
    Raises: ValueError without a density.
    """
    if not densities:
        raise ValueError("plane_picture needs at least one density; got none")
    from matplotlib.figure import Figure  # Imported here: it takes a second.

    samples = samples or {}
    width = len(densities) + len(samples)
    figure = Figure(figsize=(3 * width, 3.3), dpi=120, layout="constrained", facecolor="white")
    panels = iter(figure.subplots(1, width, squeeze=False)[0])
    brightest = np.exp(next(iter(densities.values())).max())
    window = (-limit, limit, -limit, limit)
    for (name, values), axes in zip(densities.items(), panels, strict=False):
        colours = {"vmin": 0, "vmax": brightest, "cmap": "viridis"}
        axes.imshow(np.exp(values), origin="lower", extent=window, **colours)
        axes.set_title(name, fontsize=10)
    for (name, points), axes in zip(samples.items(), panels, strict=True):
        axes.scatter(*np.asarray(points).T, s=1, color="#1f5fa8", linewidths=0)
        axes.set(xlim=window[:2], ylim=window[2:], aspect="equal")
        axes.set_title(name, fontsize=10)
    return rendered(figure)


def _both_integrals(values: Float[np.ndarray, "n n"], limit: float) -> tuple[float, float]:
    """The integrals of values over the window, by all of the grid and by every second point."""
    return _trapezoid(values, limit), _trapezoid(values[::2, ::2], limit)


def _trapezoid(values: Float[np.ndarray, "n n"], limit: float) -> float:
    spacing = 2 * limit / (len(values) - 1)
    return float(np.trapezoid(np.trapezoid(values, dx=spacing), dx=spacing))


def _refined(fine: float, coarse: float) -> Integral:
    return Integral(float(fine), float(abs(fine - coarse)))
