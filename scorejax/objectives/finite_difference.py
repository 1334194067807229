# SPDX-License-Identifier: Apache-2.0
"""Score matching from values of the energy alone, at x and at x +- eps u: no derivative in x.

eps is the length of the whole step over all coordinates of an example: each moves by eps / sqrt(D).
With l = -energy, v = eps u, and directions normalised as in `directions`, E[u u^T] = I / D,

    FD-SSM    = (l(x+v) + l(x-v) - 2 l(x) + (l(x+v) - l(x-v))^2 / 8) / eps^2
    FD-DSM    = (l(y+v) - l(y-v) + 2 v.(y - x) / sigma^2)^2 / (4 eps^2),   y = x + sigma noise
    FD-SSM-VR = |s(x+v) + s(x-v)|^2 / 8 + D v.(s(x+v) - s(x-v)) / (2 eps^2)

are, to O(eps^2), SSM (in expectation SM / D), a slice of DSM (in expectation 2 DSM / D), and SSM-VR
(in expectation SM). All values come from one call on a joined batch. A network that closes over
values of the examples (noise levels, keys for dropout) must repeat them with `repeat_rows`.
Source: Pang et al. 2020, arXiv:2007.03317, Sections 3-4. `difference_step` chooses eps.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.energies import Energy, Score, checked_score, log_density
from scorejax.numerics import expand, sum_except_batch
from scorejax.objectives.directions import (
    Direction,
    Step,
    check_step,
    draw_directions,
    real_data,
    sphere,
)
from scorejax.random import Rng, normal, split


def repeat_rows(values: Array, num_rows: int) -> Array:
    """Repeats values of examples (b, ...) for a joined batch of num_rows, a multiple of b."""
    return jnp.concatenate([values] * (num_rows // values.shape[0]))


def difference_weights(order: int, extra_nodes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Nodes a_k and weights w_k of the central difference sum_k w_k (f(a_k) +- f(-a_k)) / 2.

    The sign is plus for an even order and minus for an odd one; nodes are in units of the step. The
    sum is the derivative of that order: exact for polynomials of degree order + 1 + 2 extra_nodes.
    Raises: ValueError unless order >= 1 and extra_nodes >= 0.
    Source: arXiv:2007.03317, Section 3.1 (a Vandermonde system).
    """
    if order < 1 or extra_nodes < 0:
        raise ValueError(
            "difference_weights needs order >= 1 and extra_nodes >= 0; got "
            f"order={order}, extra_nodes={extra_nodes}."
        )
    half, odd = divmod(order, 2)
    nodes = np.arange(half + 1 + extra_nodes, dtype=np.float64) + odd
    powers = 2 * np.arange(len(nodes)) + odd
    moments = np.zeros(len(nodes))
    moments[half] = math.factorial(order)
    return nodes, np.linalg.solve(nodes[None, :] ** powers[:, None], moments)


def directional_derivative(
    f: Callable[[Float[Array, "b *d"]], Float[Array, "b *o"]],
    x: Float[Array, "b *d"],
    u: Float[Array, "b *d"],
    *,
    order: int,
    eps: Step,
    extra_nodes: int = 0,
) -> Float[Array, "b *o"]:
    """The derivative of that order of t -> f(x + t u) at t = 0, from order + 1 values of f.

    The error is O(eps^(2 + 2 extra_nodes)); each extra node costs two values. The step is eps u.
    """
    nodes, weights = difference_weights(order, extra_nodes)
    x = real_data(x)
    v = _step(eps, u, x)
    outer, outer_weights = nodes[nodes > 0], weights[nodes > 0]
    steps = jnp.stack([side * a * v for side in (1, -1) for a in outer])
    if order % 2:
        plus, minus = jnp.split(_values(f, x, steps), 2)
        pairs = (plus - minus) / 2
    else:
        # The weights of an even order sum to zero, so that the centre may be subtracted from each
        # value: such a difference of nearby numbers is exact.
        centre, ends = _centre_and_values(f, x, steps)
        plus, minus = jnp.split(ends - centre[None], 2)
        pairs = (plus + minus) / 2
    total = jnp.tensordot(jnp.asarray(outer_weights, pairs.dtype), pairs, axes=1)
    return total / per_example(eps, total) ** order


def fd_sliced(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """FD-SSM, the mean over `num_directions` draws; in expectation SM / D + O(eps^2).

    Calls the energy once, on (1 + 2 num_directions) b rows: all directions share the centre.
    """
    x = real_data(x)
    return fd_sliced_along(energy, draw_directions(direction, rng, x, num_directions), x, eps=eps)


def fd_sliced_along(
    energy: Energy, u: Float[Array, "n b *d"], x: Float[Array, "b *d"], *, eps: Step
) -> Float[Array, "b"]:
    """FD-SSM along the directions u; its bias is eps^2 (d_4 / 12 + d_1 d_3 / 6)."""
    v = _step(eps, u, x)
    centre, ends = _centre_and_values(log_density(energy), x, jnp.concatenate([v, -v]))
    # Each difference from the centre is exact: l(x+v) + l(x-v) would round at twice the size of l.
    rise, fall = jnp.split(ends - centre[None], 2)
    return jnp.mean(rise + fall + (rise - fall) ** 2 / 8, axis=0) / eps**2


def fd_denoising(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    sigma: Step,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """FD-DSM at noise of level sigma; in expectation over directions 2 DSM / D + O(eps^2)."""
    return multi_scale_fd_denoising(
        energy, rng, x, sigma=sigma, target_sigma=sigma, eps=eps, direction=direction,
        num_directions=num_directions,
    )  # fmt: skip


def multi_scale_fd_denoising(
    energy: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    sigma: Step,
    target_sigma: Step,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """FD-DSM at noise of level sigma with the target (x - y) / target_sigma^2, not weighted.

    One energy that is not conditioned on the level learns from many levels at once. MDSM weighs
    each example by 1 / sigma^2. Source: Li et al. 2019, arXiv:1910.07762.
    """
    x = real_data(x)
    noise_rng, direction_rng = split(rng)
    noise = normal(noise_rng, x.shape, x.dtype)
    u = draw_directions(direction, direction_rng, x, num_directions)
    displacement = per_example(sigma, x) * noise
    return fd_denoising_along(energy, u, displacement, x, target_sigma=target_sigma, eps=eps)


def fd_denoising_along(
    energy: Energy,
    u: Float[Array, "n b *d"],
    displacement: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    *,
    target_sigma: Step,
    eps: Step,
) -> Float[Array, "b"]:
    """FD-DSM along the directions u at y = x + displacement.

    Its bias is eps^2 (d_1 + r) d_3 / 3 with r = u . displacement / target_sigma^2.
    """
    y = x + displacement
    v = _step(eps, u, y)
    plus, minus = jnp.split(_values(log_density(energy), y, jnp.concatenate([v, -v])), 2)
    target = displacement / per_example(target_sigma, x) ** 2
    along = jax.vmap(sum_except_batch)(v * target[None])
    return jnp.mean((plus - minus + 2 * along) ** 2, axis=0) / (4 * eps**2)


def score_fd_sliced(
    score: Score,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """FD-SSM of a score network, from two values of it; in expectation SM / D + O(eps^2)."""
    x = real_data(x)
    u = draw_directions(direction, rng, x, num_directions)
    return score_fd_sliced_along(score, u, x, eps=eps)


def score_fd_sliced_along(
    score: Score, u: Float[Array, "n b *d"], x: Float[Array, "b *d"], *, eps: Step
) -> Float[Array, "b"]:
    """Mean over the directions u of (((s+ + s-) . v)^2 / 8 + (s+ - s-) . v / 2) / eps^2."""
    v = _step(eps, u, x)
    plus, minus = jnp.split(_values(checked_score(score), x, jnp.concatenate([v, -v])), 2)
    dot = jax.vmap(sum_except_batch)
    value = dot((plus + minus) * v) ** 2 / 8 + dot((plus - minus) * v) / 2
    return jnp.mean(value, axis=0) / eps**2


def fd_sliced_vr(
    score: Score,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """FD-SSM-VR of a score network, from two values of it; in expectation SM + O(eps^2)."""
    x = real_data(x)
    u = draw_directions(direction, rng, x, num_directions)
    return fd_sliced_vr_along(score, u, x, eps=eps)


def fd_sliced_vr_along(
    score: Score, u: Float[Array, "n b *d"], x: Float[Array, "b *d"], *, eps: Step
) -> Float[Array, "b"]:
    """FD-SSM-VR along the directions u.

    Its bias is eps^2 (s . d_u^2 s / 2 + (D / 6) u . d_u^3 s), d_u the derivative along u.
    """
    v = _step(eps, u, x)
    plus, minus = jnp.split(_values(checked_score(score), x, jnp.concatenate([v, -v])), 2)
    dot, dim = jax.vmap(sum_except_batch), math.prod(x.shape[1:])
    square = jnp.mean(dot((plus + minus) ** 2), axis=0) / 8
    return square + dim * jnp.mean(dot((plus - minus) * v), axis=0) / (2 * eps**2)


def fd_gradient_penalty(
    f: Energy,
    rng: Rng,
    x: Float[Array, "b *d"],
    *,
    eps: Step,
    direction: Direction = sphere,
    num_directions: int = 1,
) -> Float[Array, "b"]:
    """The R1 penalty |grad f|^2 of a critic f, x -> (b,), from central differences.

    D ((f(x+v) - f(x-v)) / (2 eps))^2; in expectation |grad f|^2 + O(eps^2), without R1's gamma / 2.
    """
    x = real_data(x)
    v = _step(eps, draw_directions(direction, rng, x, num_directions), x)
    plus, minus = jnp.split(_values(log_density(f), x, jnp.concatenate([v, -v])), 2)
    dim = math.prod(x.shape[1:])
    return dim * jnp.mean((plus - minus) ** 2, axis=0) / (4 * eps**2)


def per_example(value: Step, x: Float[Array, "b *d"]) -> Array:
    """Reshapes one number, or one per example, so that it broadcasts against x."""
    value = jnp.asarray(value, x.dtype)
    return expand(jnp.broadcast_to(value, x.shape[:1]), x)


def _step(eps: Step, u: Array, x: Float[Array, "b *d"]) -> Array:
    check_step(eps, u, x)
    length = per_example(eps, x)
    return length.reshape((1,) * (u.ndim - x.ndim) + length.shape) * u


def _values(f: Callable, x: Float[Array, "b *d"], steps: Float[Array, "k b *d"]) -> Array:
    """f(x + step) for each step, (k, b, ...), from one call."""
    joined = f((x[None] + steps).reshape(-1, *x.shape[1:]))
    return joined.reshape(*steps.shape[:2], *joined.shape[1:])


def _centre_and_values(
    f: Callable, x: Float[Array, "b *d"], steps: Float[Array, "k b *d"]
) -> tuple[Array, Array]:
    """f(x), and f(x + step) for each step, from one call."""
    values = _values(f, x, jnp.concatenate([jnp.zeros_like(steps[:1]), steps]))
    return values[0], values[1:]
