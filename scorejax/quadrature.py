# SPDX-License-Identifier: Apache-2.0
"""Univariate densities from their scores, by quadrature.

In one dimension every score integrates to a log-density, S(u) = integral of s, and a second
integral normalises it: log p(u) = S(u) - log of the integral of exp S. Both integrals are over
cells, in each of which s is the quartic through five nodes. Cells are halved where a rule of lower
order on the same nodes differs most, which also gives an estimate of the error; mass beyond the
ends of the range counts as error too.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.typing import HeadFn, PyTree

NUM_CELLS = 96
NUM_HALVINGS = 10
MIN_CELLS = 2 * NUM_HALVINGS
"""Fewest cells of an adaptive table."""
NUM_NODES = 5
NODES = np.linspace(0, 1, NUM_NODES)

# Weights of up to 90 and alternating sums: factors of bfloat16 would leave no digit of a density.
_matmul = functools.partial(jnp.matmul, precision="highest")


def _cumulative_weights(nodes: np.ndarray) -> np.ndarray:
    """Row j integrates the polynomial through values at the nodes from nodes[0] to nodes[j]."""
    monomials = np.vander(nodes, increasing=True)
    powers = np.arange(1, len(nodes) + 1)
    integrals = (nodes[:, None] ** powers - nodes[0] ** powers) / powers
    return np.linalg.solve(monomials.T, integrals.T).T


QUARTIC = _cumulative_weights(NODES)
QUADRATIC = _cumulative_weights(NODES[::2])
INTEGRALS = np.linalg.inv(np.vander(NODES, increasing=True)) / np.arange(1, NUM_NODES + 1)[:, None]
"""Row k: by t^(k+1), what values at the nodes add to the integral of their quartic up to t."""


SUBCELLS = 8
"""Cells between a node of a table, or its end, and a value at which its density is asked for."""
AT_ONCE = 4096
"""Conditionals tabulated at once: their heads hold AT_ONCE * 4 NUM_CELLS values of u."""


class Table(NamedTuple):
    """A univariate density on consecutive cells.

    `log_density` is at five nodes of each cell, equally spaced from edge to edge; `masses` are the
    probabilities of the quarters of each cell and sum to 1; `errors` are estimates of the largest
    error of the log-density in a cell, in nats.
    """

    edges: Float[Array, "k+1"]
    log_density: Float[Array, "k 5"]
    masses: Float[Array, "k 4"]
    errors: Float[Array, "k"]


def require_range(low: float | np.ndarray, high: float | np.ndarray, num_cells: int) -> None:
    """Raises ValueError unless low < high are finite and there are at least `MIN_CELLS` cells."""
    if not np.all(np.isfinite(low) & np.isfinite(high) & (np.asarray(low) < high)):
        raise ValueError(f"a quadrature needs finite low < high; got {low} and {high}")
    if num_cells < MIN_CELLS:
        raise ValueError(f"a quadrature needs at least {MIN_CELLS} cells; got {num_cells}")


def adaptive_table(
    head: HeadFn,
    c: Float[Array, "h"],
    low: Float[Array, ""],
    high: Float[Array, ""],
    *,
    num_cells: int = NUM_CELLS,
) -> Table:
    """The density of one conditional, on cells that are halved where its integrals err most.

    Takes 4 num_cells evaluations of the head. A mode that no node of the first cells feels, which
    are (high - low) / num_cells wide by a factor of about 1.5, can be missed; one beside a wider
    mode needs a standard deviation of a thousandth of the range or more.
    """
    num_first = num_cells // (1 + NUM_HALVINGS // 2)
    each = (num_cells - num_first) // NUM_HALVINGS
    edges = low + (high - low) * jnp.linspace(0, 1, num_first + 1, dtype=c.dtype)
    # Cells to come have no width and lie at the upper end.
    edges = jnp.pad(edges, (0, each * NUM_HALVINGS), mode="edge")
    s = _at_nodes(head, c, edges[: num_first + 1])
    s = jnp.concatenate([s, jnp.broadcast_to(s[-1, -1], (each * NUM_HALVINGS, NUM_NODES))])

    def halve(i: Array, cells: tuple[Array, Array]) -> tuple[Array, Array]:
        edges, s = cells
        worst = jax.lax.top_k(_cell_errors(edges, s), each)[1]
        start, width = edges[worst], jnp.diff(edges)[worst]
        odd = jnp.arange(1, 8, 2, dtype=c.dtype)[None] / 8
        new = head(start[:, None] + width[:, None] * odd, c[None, None])
        old = s[worst]
        lower = jnp.stack([old[:, 0], new[:, 0], old[:, 1], new[:, 1], old[:, 2]], axis=1)
        upper = jnp.stack([old[:, 2], new[:, 2], old[:, 3], new[:, 3], old[:, 4]], axis=1)
        slot = num_first + i * each
        s = jax.lax.dynamic_update_slice(s.at[worst].set(lower), upper, (slot, 0))
        starts = jax.lax.dynamic_update_slice(edges[:-1], start + width / 2, (slot,))
        order = jnp.argsort(starts)
        return jnp.append(starts[order], high), s[order]

    edges, s = jax.lax.fori_loop(0, NUM_HALVINGS, halve, (edges, s))
    return _table(edges, s)


def level_cells(
    bounds: np.ndarray, margin: float, cells_per_level: int
) -> tuple[Float[np.ndarray, "k+1"], Int[np.ndarray, "levels+1"]]:
    """Edges of equal cells that part at every bound, and the first cell of each level.

    `bounds` (levels - 1,) are equally spaced; cells go on up to `margin` from the outer ones. The
    last number is that of all cells.
    """
    width = (bounds[1] - bounds[0]) / cells_per_level
    num_ends, num_inner = math.ceil(margin / width), (len(bounds) - 1) * cells_per_level
    edges = bounds[0] + width * np.arange(-num_ends, num_inner + num_ends + 1)
    inner = num_ends + cells_per_level * np.arange(len(bounds))
    return edges, np.concatenate([[0], inner, [len(edges) - 1]])


def tabulate(head: HeadFn, c: Float[Array, "h"], edges: Float[Array, "k+1"]) -> Table:
    """The density of one conditional on the cells between the edges."""
    return _table(edges, _at_nodes(head, c, edges))


def log_density_at(
    head: HeadFn, c: Float[Array, "h"], table: Table, x: Float[Array, ""]
) -> tuple[Array, Array]:
    """The log-density at x and its error; the score goes on beyond the ends of the table.

    The rise from the start of x's cell, or from the end of the table, is over `SUBCELLS` cells, and
    what two rules differ in there is part of the error.
    """
    last = len(table.edges) - 2
    cell = jnp.clip(jnp.searchsorted(table.edges, x, side="right") - 1, 0, last)
    above = x > table.edges[-1]
    start = jnp.where(above, table.edges[-1], table.edges[cell])
    base = jnp.where(above, table.log_density[-1, -1], table.log_density[cell, 0])
    s = _at_nodes(head, c, start + (x - start) * jnp.linspace(0, 1, SUBCELLS + 1, dtype=x.dtype))
    width = (x - start) / SUBCELLS
    rise = width * jnp.sum(_matmul(s, jnp.asarray(QUARTIC[-1], x.dtype)))
    error = table.errors[cell] + jnp.sum(_rule_errors(jnp.abs(width), s))
    log_density = base + rise
    return log_density, jnp.where(jnp.isfinite(log_density), error, jnp.inf)


def cumulative(table: Table, x: Float[Array, ""]) -> tuple[Array, Array]:
    """The probability below x, 0 or 1 beyond the ends, and its error; the inverse of `quantile`.

    Takes the density as linear in each quarter of a cell; the error is the difference from the
    quartic through the nodes of the cell.
    """
    last = len(table.edges) - 2
    cell = jnp.clip(jnp.searchsorted(table.edges, x, side="right") - 1, 0, last)
    width = (table.edges[cell + 1] - table.edges[cell]) / 4
    place = jnp.clip((x - table.edges[cell]) / jnp.where(width > 0, width, 1), 0, 4)
    j = jnp.minimum(place.astype(int), 3)
    t = place - j
    log_p = table.log_density[cell]
    p0, p1 = jnp.exp(log_p[j] - jnp.max(log_p)), jnp.exp(log_p[j + 1] - jnp.max(log_p))
    share = (p0 * t + (p1 - p0) * t**2 / 2) / jnp.maximum((p0 + p1) / 2, jnp.finfo(x.dtype).tiny)
    masses = table.masses.reshape(-1)
    before = jnp.where(jnp.arange(len(masses)) < 4 * cell + j, masses, 0)
    linear = share * masses[4 * cell + j]
    powers = (place / 4) ** jnp.arange(1, NUM_NODES + 1, dtype=x.dtype)
    weights = _matmul(powers, jnp.asarray(INTEGRALS, x.dtype))
    quartic = 4 * width * jnp.sum(weights * jnp.exp(log_p))
    in_cell = jnp.sum(jnp.where(jnp.arange(4) < j, table.masses[cell], 0)) + linear
    return jnp.clip(jnp.sum(before) + linear, 0, 1), jnp.abs(quartic - in_cell)


def quantile(table: Table, v: Float[Array, ""]) -> Float[Array, ""]:
    """The value below which the table has the probability v of [0, 1).

    Takes the density as linear in each quarter of a cell.
    """
    masses = table.masses.reshape(-1)
    cumulative = jnp.cumsum(masses)
    # Rounding of the sum keeps v from lying above its end, and empty quarters from being chosen.
    target = v * cumulative[-1]
    quarter = jnp.minimum(jnp.searchsorted(cumulative, target, side="right"), len(masses) - 1)
    share = (target - cumulative[quarter]) / jnp.maximum(masses[quarter], jnp.finfo(v.dtype).tiny)
    cell, j = quarter // 4, quarter % 4
    width = (table.edges[cell + 1] - table.edges[cell]) / 4
    log_p = table.log_density[cell]
    p0, p1 = jnp.exp(log_p[j] - jnp.max(log_p)), jnp.exp(log_p[j + 1] - jnp.max(log_p))
    share = jnp.clip(1 + share, 0, 1)
    # The root of p0 t + (p1 - p0) t^2 / 2 = share (p0 + p1) / 2, without cancellation.
    root = jnp.sqrt(p0**2 + share * (p1**2 - p0**2))
    t = share * (p0 + p1) / jnp.maximum(p0 + root, jnp.finfo(v.dtype).tiny)
    return table.edges[cell] + width * (j + jnp.clip(t, 0, 1))


def _at_nodes(
    head: HeadFn, c: Float[Array, "h"], edges: Float[Array, "k+1"]
) -> Float[Array, "k 5"]:
    """The score at the nodes of each cell; neighbours share the node at their edge."""
    inside = edges[:-1, None] + jnp.diff(edges)[:, None] * jnp.asarray(NODES[None, :-1], c.dtype)
    s = head(jnp.append(inside.reshape(-1), edges[-1]), c[None])
    return jnp.stack([s[j : len(s) - 4 + j : 4] for j in range(NUM_NODES)], axis=1)


def _table(edges: Float[Array, "k+1"], s: Float[Array, "k 5"]) -> Table:
    log_density, masses = _integrate(s, edges, QUARTIC)
    rougher, _ = _integrate(s[:, ::2], edges, QUADRATIC)
    at_edges = jnp.max(jnp.abs(rougher - log_density[:, ::2])[:, ::2], axis=1)
    # A tail whose score goes on as at the end has the mass p / |s|.
    decay = jnp.stack([s[0, 0], -s[-1, -1]])
    ends = jnp.exp(jnp.stack([log_density[0, 0], log_density[-1, -1]]))
    ends = jnp.where(ends > 0, ends / jnp.maximum(decay, 0), 0)
    errors = at_edges + _rule_errors(jnp.diff(edges), s) + jnp.log1p(jnp.sum(ends))
    return Table(edges, log_density, masses, errors)


def _cell_errors(edges: Float[Array, "k+1"], s: Float[Array, "k 5"]) -> Float[Array, "k"]:
    """Errors in nats that each cell adds: of the rise of log p across it, and of its mass."""
    density = jnp.exp(_integrate(s, edges, QUARTIC)[0])
    widths = jnp.diff(edges)
    return _rule_errors(widths, s) + _rule_errors(widths, density)


def _rule_errors(widths: Float[Array, "*n"], values: Float[Array, "k 5"]) -> Float[Array, "k"]:
    """Difference of the two rules over a cell, or over its first half if that is larger.

    Over a cell alone, errors of a score that is odd around the middle of the cell cancel.
    """
    fine, rough = (jnp.asarray(w.T, values.dtype) for w in (QUARTIC[2::2], QUADRATIC[1:]))
    differences = _matmul(values, fine) - _matmul(values[:, ::2], rough)
    return widths * jnp.max(jnp.abs(differences), axis=1)


def _integrate(s: Array, edges: Array, weights: np.ndarray) -> tuple[Array, Array]:
    """Normalised log-density at the nodes (k, n), and masses (k, n - 1), from s (k, n) there."""
    widths, weights = jnp.diff(edges)[:, None], jnp.asarray(weights.T, s.dtype)
    rise = widths * _matmul(s, weights)
    log_density = _running_sum(rise[:, -1])[:-1, None] + rise
    log_density = log_density - jnp.max(log_density)
    below = widths * _matmul(jnp.exp(log_density), weights)
    log_density = log_density - jnp.log(jnp.sum(below[:, -1]))
    masses = jnp.maximum(jnp.diff(below, axis=1), 0)
    return log_density, masses / jnp.sum(masses)


def _running_sum(steps: Float[Array, "k"]) -> Float[Array, "k+1"]:
    """Sums of steps up to an additive constant, exact to rounding where they are largest.

    Sums from the left end would carry the rounding of a tail that is thousands of nats deep.
    """
    top = jnp.argmax(jnp.cumsum(steps))
    right = jnp.arange(len(steps)) > top
    ascending = jnp.cumsum(jnp.where(right, steps, 0))
    descending = jnp.cumsum(jnp.where(right, 0, steps)[::-1])[::-1]
    return jnp.pad(ascending, (1, 0)) - jnp.pad(descending, (0, 1))


def over_conditionals(
    one: Callable, c: Float[Array, "*n h"], *arrays: Array, at_once: int = AT_ONCE
) -> PyTree:
    """Maps `one` over the conditionals of c and of the arrays, which broadcast to (*n)."""
    shape = c.shape[:-1]
    flat = (jnp.broadcast_to(jnp.asarray(a), shape).reshape(-1) for a in arrays)
    found = jax.lax.map(one, (c.reshape(-1, c.shape[-1]), *flat), batch_size=at_once)
    return jax.tree.map(lambda a: a.reshape(shape), found)
