# SPDX-License-Identifier: Apache-2.0
"""Exact densities of autoregressive models whose conditionals are scores, by quadrature.

A joint log-density is the sum of D univariate ones, each by `quadrature`; that of a discrete image
takes the integral of the density over each grey level. An estimate of its error comes with each
number.

Source: ours; Meng et al. 2020, arXiv:2010.12810, for the conditional scores.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.noise_flow import NUM_STEPS, at_sigma, transport
from scorejax.numerics import log_mass, sum_except_batch
from scorejax.quadrature import (
    AT_ONCE,
    NUM_CELLS,
    QUARTIC,
    Table,
    adaptive_table,
    cumulative,
    level_cells,
    log_density_at,
    over_conditionals,
    require_range,
    tabulate,
)
from scorejax.typing import ContextsFn, HeadFn, NoisyHeadFn

SMALL = 1e-4
"""Probability below which a difference of two distribution functions has lost its digits."""
STEP = 0.8
"""Largest step of an integral over a level, in standard deviations of the smallest noise."""


class Conditionals(NamedTuple):
    """log p(x_d | x_<d) in nats of each dimension, and an estimate of its absolute error."""

    log_prob: Float[Array, "b *d"]
    error: Float[Array, "b *d"]


def log_prob(
    head: HeadFn,
    contexts: ContextsFn,
    x: Float[Array, "b *d"],
    *,
    low: float | np.ndarray = -10.0,
    high: float | np.ndarray = 10.0,
    num_cells: int = NUM_CELLS,
) -> Float[Array, "b"]:
    """Joint log-density in nats; see `conditional_log_probs`."""
    c = contexts(x)
    found = conditional_log_probs(head, c, x, low=low, high=high, num_cells=num_cells)
    return sum_except_batch(found.log_prob)


def conditional_log_probs(
    head: HeadFn,
    c: Float[Array, "b *d h"],
    x: Float[Array, "b *d"],
    *,
    low: float | np.ndarray = -10.0,
    high: float | np.ndarray = 10.0,
    num_cells: int = NUM_CELLS,
    at_once: int = AT_ONCE,
) -> Conditionals:
    """Log-density of each dimension in its context.

    The integrals run from `low` to `high`, which broadcast against x, and the density goes on
    beyond them as the score does. Mass that they cut off is in the error, which is infinite if the
    score still rises there. Tabulates `at_once` conditionals at a time.
    Raises: ValueError as `quadrature.require_range`.
    """
    require_range(low, high, num_cells)

    def one(row: tuple[Array, ...]) -> Conditionals:
        c, x, low, high = row
        table = adaptive_table(head, c, low, high, num_cells=num_cells)
        return Conditionals(*log_density_at(head, c, table, x))

    ends = jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype)
    return over_conditionals(one, c, x, *ends, at_once=at_once)


def flow_log_probs(
    head: NoisyHeadFn,
    c: Float[Array, "b *d h"],
    x: Float[Array, "b *d"],
    *,
    sigmas: tuple[float, float],
    low: float,
    high: float,
    num_cells: int = NUM_CELLS,
    at_once: int = AT_ONCE,
) -> Conditionals:
    """Log-density of each dimension with the smaller noise of `sigmas` (smaller, larger).

    The flow takes x to the larger noise, whose density is by quadrature from `low` to `high`; see
    `noise_flow`. The error has the change from half as many steps.
    """
    ends = {"start": sigmas[0], "end": sigmas[1]}

    def one(row: tuple[Array, ...]) -> Conditionals:
        c, x = row
        table = _noisiest(head, c, sigmas[1], low, high, num_cells)
        values = []
        for num_steps in (NUM_STEPS, NUM_STEPS // 2):
            u, log_slope = transport(head, c[None], x[None], **ends, num_steps=num_steps)
            log_p, error = log_density_at(at_sigma(head, sigmas[1]), c, table, u[0])
            values.append(log_p + log_slope[0])
        return Conditionals(values[0], error + jnp.abs(values[0] - values[1]))

    return over_conditionals(one, c, x, at_once=at_once)


def flow_discrete_log_probs(
    head: NoisyHeadFn,
    c: Float[Array, "b *d h"],
    level: Int[Array, "b *d"],
    *,
    bounds: np.ndarray,
    sigmas: tuple[float, float],
    low: float,
    high: float,
    num_cells: int = NUM_CELLS,
    at_once: int = AT_ONCE,
) -> Conditionals:
    """Log-probability of each dimension's level with the smaller noise of `sigmas`.

    The flow keeps order, so that the probability between two bounds is that between their images at
    the larger noise. Where it is too small for a difference of single precision, it is the integral
    of the density over the level, an end level as wide as the others, and the error has the
    difference of two rules; so it has for the distribution functions. Other arguments as in
    `discrete_log_probs`, `flow_log_probs`.
    """
    last, ends = len(bounds), {"start": sigmas[0], "end": sigmas[1]}
    grid, num = _points_of_levels(bounds, sigmas[0])
    noisiest = at_sigma(head, sigmas[1])

    def one(row: tuple[Array, ...]) -> Conditionals:
        c, level = row
        points = jax.lax.dynamic_slice(jnp.asarray(grid, c.dtype), (level * num,), (num + 1,))
        table = _noisiest(head, c, sigmas[1], low, high, num_cells)
        values = []
        for num_steps in (NUM_STEPS, NUM_STEPS // 2):
            u, log_slope = transport(head, c[None], points, **ends, num_steps=num_steps)
            below, off = jax.vmap(lambda u: cumulative(table, u))(u[np.array([0, -1])])
            inner = jnp.stack([level > 0, level < last])
            lower, upper = jnp.where(inner, below, jnp.array([0.0, 1.0], c.dtype))
            log_p, errors = jax.vmap(lambda u: log_density_at(noisiest, c, table, u))(u)
            tiny, rough = _log_integrals(log_p + log_slope, grid[1] - grid[0])
            values.append(log_mass(lower, upper, tiny, least=SMALL))
            mass, off = upper - lower, jnp.sum(jnp.where(inner, off, 0))
            rules = jnp.where(mass > SMALL, off / jnp.maximum(mass, SMALL), jnp.abs(tiny - rough))
        return Conditionals(values[0], jnp.max(errors) + jnp.abs(values[0] - values[1]) + rules)

    return over_conditionals(one, c, level, at_once=at_once)


def _points_of_levels(bounds: np.ndarray, sigma: float) -> tuple[np.ndarray, int]:
    """Points from the lower end of the first level to the upper end of the last, and how many steps
    there are in a level: an even number, of `STEP` sigma or less."""
    spacing, num_levels = float(bounds[1] - bounds[0]), len(bounds) + 1
    num = max(4, 2 * math.ceil(spacing / (2 * STEP * sigma)))
    return bounds[0] - spacing + spacing / num * np.arange(num_levels * num + 1), num


def _log_integrals(log_density: Float[Array, "n"], step: float) -> tuple[Array, Array]:
    """Logarithms of the integral of a density from its values at n equally spaced points, by
    Simpson's rule and by that of trapezoids."""
    weights = np.full(len(log_density), 2 / 3)
    weights[1::2], weights[[0, -1]] = 4 / 3, 1 / 3
    trapezoids = np.where(np.arange(len(weights)) % (len(weights) - 1), 1.0, 0.5)
    simpson, rough = (
        jax.nn.logsumexp(log_density + jnp.log(jnp.asarray(step * w, log_density.dtype)))
        for w in (weights, trapezoids)
    )
    return simpson, rough


def _noisiest(
    head: NoisyHeadFn, c: Array, sigma: float, low: float, high: float, num_cells: int
) -> Table:
    ends = jnp.asarray(low, c.dtype), jnp.asarray(high, c.dtype)
    return adaptive_table(at_sigma(head, sigma), c, *ends, num_cells=num_cells)


def discrete_log_probs(
    head: HeadFn,
    c: Float[Array, "b *d h"],
    level: Int[Array, "b *d"],
    *,
    bounds: np.ndarray,
    margin: float,
    cells_per_level: int = 4,
    at_once: int = AT_ONCE,
) -> Conditionals:
    """Log-probability of each dimension's level, the integral of the density from bound to bound.

    `bounds` (levels - 1,) are equally spaced and part the levels; the first and the last level take
    what lies beyond, which is integrated up to `margin` from the outer bounds.
    """
    edges, first = level_cells(bounds, margin, cells_per_level)
    width = (bounds[1] - bounds[0]) / cells_per_level
    log_weights = jnp.log(jnp.asarray(width * QUARTIC[-1], c.dtype))[None]
    # As many values of u as `at_once` tables of the usual size.
    at_once = max(1, at_once * NUM_CELLS // (len(edges) - 1))

    def one(row: tuple[Array, ...]) -> Conditionals:
        c, level = row
        table = tabulate(head, c, jnp.asarray(edges, c.dtype))
        # Logarithms: a level that surprises has a mass below the range of single precision.
        mass = jax.nn.logsumexp(table.log_density + log_weights, axis=1)
        cells = jnp.arange(len(edges) - 1)
        of_level = (cells >= jnp.asarray(first)[level]) & (cells < jnp.asarray(first)[level + 1])
        error = jnp.max(jnp.where(of_level, table.errors, 0))
        return Conditionals(jax.nn.logsumexp(mass, where=of_level), error)

    return over_conditionals(one, c, level, at_once=at_once)
