# SPDX-License-Identifier: Apache-2.0
"""Samples of autoregressive models whose conditionals are scores: one dimension after another.

`ancestral` takes each dimension's context from a cache that the trunk carries along, so that D
dimensions cost about one pass, not D. A dimension is drawn by the inverse of its distribution
function, exact up to a table (`inverse_cdf`), or by annealed Langevin dynamics (`langevin`), which
is the paper's way. `jacobi` draws all dimensions at once and again until nothing changes: the same
sample as the inverse distribution functions give in order, in as many passes as dimensions depend
on each other in a chain, D at most.

A row draws position i from its own key with i folded in.

Sources: Meng et al. 2020, arXiv:2010.12810; Song et al. 2021, arXiv:2002.03629, for Jacobi.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from scorejax.noise_flow import at_sigma, transport
from scorejax.quadrature import (
    AT_ONCE,
    NUM_CELLS,
    adaptive_table,
    level_cells,
    over_conditionals,
    quantile,
    require_range,
    tabulate,
)
from scorejax.random import draw_rows, fold_in, normal, split
from scorejax.typing import ContextsFn, HeadFn, NoisyHeadFn, PyTree, Sampled, Shape

Advance = Callable[[PyTree, Float[Array, "b *d"], Int[Array, ""]], tuple[PyTree, Array]]
"""(cache, x, position) -> (cache, context (b, h)); called for positions 0, 1, ... in turn. Earlier
dimensions of x are final, later ones arbitrary."""
DrawDimension = Callable[[Key[Array, "b"], Float[Array, "b h"]], Float[Array, "b"]]
"""(keys, contexts) -> a value of the dimension for each row."""
Invert = Callable[[Float[Array, "*n h"], Float[Array, "*n"]], Float[Array, "*n"]]
"""(contexts, v) -> the values below which the conditionals have the probabilities v."""
NUM_BISECTIONS = 32


class Parallel(NamedTuple):
    """Samples, and how many sweeps over all dimensions each took, the last one to see no change."""

    x: Float[Array, "b *d"]
    sweeps: Int[Array, "b"]


def ancestral(
    rngs: Key[Array, "b"],
    draw: DrawDimension,
    advance: Advance,
    cache: PyTree,
    shape: Shape,
    *,
    order: np.ndarray,
    calls_per_draw: int,
) -> Sampled:
    """Draws every dimension in its order. `order` (D,) has the flat index of each position.

    `nfe` counts evaluations of the head for one sample: D `calls_per_draw`.
    """
    num = len(order)

    def step(carry: tuple[PyTree, Array], place: tuple[Array, Array]) -> tuple[Any, None]:
        (cache, x), (position, index) = carry, place
        cache, c = advance(cache, x.reshape(shape), position)
        return (cache, x.at[:, index].set(draw(fold_in(rngs, position), c))), None

    x = jnp.zeros((shape[0], num))
    places = jnp.arange(num), jnp.asarray(order)
    (_, x), _ = jax.lax.scan(step, (cache, x), places)
    return Sampled(x.reshape(shape), num * calls_per_draw)


def inverse_cdf(invert: Invert) -> DrawDimension:
    """Builds a draw by an inverse distribution function, `tabulated` or `bisected`."""
    uniform = functools.partial(draw_rows, jax.random.uniform)
    return lambda rngs, c: invert(c, uniform(rngs, (len(rngs),)))


def tabulated(
    head: HeadFn, *, low: float, high: float, num_cells: int = NUM_CELLS, at_once: int = AT_ONCE
) -> Invert:
    """Builds the inverse distribution function of a score, by a table from low to high.

    Makes 4 num_cells evaluations of the head, see `quadrature.adaptive_table`. Mass beyond the ends
    is not drawn. Raises: ValueError as `quadrature.require_range`.
    """
    require_range(low, high, num_cells)

    def invert(c: Float[Array, "*n h"], v: Float[Array, "*n"]) -> Float[Array, "*n"]:
        ends = jnp.asarray(low, v.dtype), jnp.asarray(high, v.dtype)

        def one(row: tuple[Array, Array]) -> Array:
            return quantile(adaptive_table(head, row[0], *ends, num_cells=num_cells), row[1])

        return over_conditionals(one, c, v, at_once=at_once)

    return invert


def tabulated_by_levels(
    head: HeadFn,
    *,
    bounds: np.ndarray,
    margin: float,
    cells_per_level: int = 4,
    at_once: int = AT_ONCE,
) -> Invert:
    """Builds the inverse distribution function of grey levels, by the table that gives them their
    probabilities: `density.autoregressive.discrete_log_probs`, whose arguments it takes."""
    edges, _ = level_cells(bounds, margin, cells_per_level)
    at_once = max(1, at_once * NUM_CELLS // (len(edges) - 1))

    def invert(c: Float[Array, "*n h"], v: Float[Array, "*n"]) -> Float[Array, "*n"]:
        def one(row: tuple[Array, Array]) -> Array:
            return quantile(tabulate(head, row[0], jnp.asarray(edges, v.dtype)), row[1])

        return over_conditionals(one, c, v, at_once=at_once)

    return invert


def flowed(
    head: NoisyHeadFn,
    *,
    sigmas: tuple[float, float],
    low: float,
    high: float,
    num_cells: int = NUM_CELLS,
) -> Invert:
    """Builds the inverse distribution function at the smaller noise of `sigmas` (smaller, larger).

    It is `tabulated` at the larger noise, from where the flow takes values down; see `noise_flow`.
    """
    noisiest = at_sigma(head, sigmas[1])
    invert_noisiest = tabulated(noisiest, low=low, high=high, num_cells=num_cells)

    def invert(c: Float[Array, "*n h"], v: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return transport(head, c, invert_noisiest(c, v), start=sigmas[1], end=sigmas[0])[0]

    return invert


def bisected(
    cdf: Callable[[Array, Array], Array],
    *,
    low: float,
    high: float,
    num_steps: int = NUM_BISECTIONS,
) -> Invert:
    """Builds the inverse of a distribution function (u, c) -> probability, by bisection.

    Values beyond low and high come out as the ends.
    """

    def invert(c: Float[Array, "*n h"], v: Float[Array, "*n"]) -> Float[Array, "*n"]:
        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            below, above = ends
            middle = (below + above) / 2
            p = cdf(middle, c)
            # NaN stays NaN, where a comparison would make it one of the ends.
            new_above = jnp.where(jnp.isnan(p), p, middle)
            return jnp.where(p < v, middle, below), jnp.where(p < v, above, new_above)

        ends = jnp.full_like(v, low), jnp.full_like(v, high)
        below, above = jax.lax.fori_loop(0, num_steps, halve, ends)
        return (below + above) / 2

    return invert


def langevin(
    head: NoisyHeadFn,
    *,
    sigmas: np.ndarray,
    step_size: float,
    steps_per_level: int,
    low: float = -math.inf,
    high: float = math.inf,
) -> DrawDimension:
    """Builds a draw by annealed Langevin dynamics in one dimension.

    head(u, c, sigma) is the score at noise sigma of the descending `sigmas`; a step is

        u <- u + alpha / 2 s + sqrt(alpha) z,    alpha = step_size (sigma / sigma_L)^2.

    A chain starts from N(0, sigma_1^2) and ends with the mean given its last state, which removes
    the noise sigma_L. It is clipped to [low, high], since an outlier would shift all later
    contexts. A step is stable while alpha < 4 V, V the variance of the narrowest conditional, which
    is at least sigma_L^2.
    Raises: ValueError unless 0 < step_size < 4 sigma_L^2 and steps_per_level >= 1.
    """
    sigmas = np.asarray(sigmas)
    if not 0 < step_size < 4 * sigmas[-1] ** 2:
        raise ValueError(
            f"langevin needs a step_size in (0, {4 * sigmas[-1] ** 2:.3g}), four times the "
            f"smallest sigma squared; got {step_size}"
        )
    if steps_per_level < 1:
        raise ValueError(f"langevin needs steps_per_level >= 1; got {steps_per_level}")
    levels = jnp.repeat(jnp.asarray(sigmas, float), steps_per_level)

    def draw(rngs: Key[Array, "b"], c: Float[Array, "b h"]) -> Float[Array, "b"]:
        start_rng, chain_rng = split(rngs)

        def step(u: Array, place: tuple[Array, Array]) -> tuple[Array, None]:
            i, sigma = place
            alpha = step_size * (sigma / sigmas[-1]) ** 2
            z = normal(fold_in(chain_rng, i), u.shape)
            return u + alpha / 2 * head(u, c, sigma) + jnp.sqrt(alpha) * z, None

        u = sigmas[0] * normal(start_rng, c.shape[:1])
        u, _ = jax.lax.scan(step, u, (jnp.arange(len(levels)), levels))
        last = jnp.asarray(sigmas[-1], u.dtype)
        return jnp.clip(u + last**2 * head(u, c, last), low, high)

    return draw


def jacobi(
    rngs: Key[Array, "b"],
    invert: Invert,
    contexts: ContextsFn,
    shape: Shape,
    *,
    order: np.ndarray,
    to_value: Callable[[Array], Array] = lambda u: u,
) -> Parallel:
    """The sample of `ancestral` by `inverse_cdf`, by sweeps over all dimensions at once.

    A sweep draws every dimension from the contexts of the last sweep. After sweep k the first k
    dimensions are final; in practice many more are. A row is done when a sweep changes none of its
    entries, after D sweeps at the latest. `to_value` rounds draws, of grey levels say.
    """
    num = len(order)
    position = np.empty(num, np.int32)
    position[np.asarray(order)] = np.arange(num)
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(position)))
    v = jax.vmap(jax.vmap(jax.random.uniform))(keys(rngs)).reshape(shape)

    def sweep(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        i, x, sweeps, moves = carry
        new = to_value(invert(contexts(x), v))
        # A row that is done stays: its sample does not depend on how long others take.
        new = jnp.where(moves.reshape(-1, *(1,) * (x.ndim - 1)), new, x)
        moved = jnp.any((new != x).reshape(len(x), -1), axis=1)
        return i + 1, new, jnp.where(moves, i + 1, sweeps), moved

    start = 0, jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32), jnp.ones(shape[0], bool)
    goes_on = lambda carry: (carry[0] < num) & jnp.any(carry[3])
    _, x, sweeps, _ = jax.lax.while_loop(goes_on, sweep, start)
    return Parallel(x, sweeps)
