# SPDX-License-Identifier: Apache-2.0
"""Bounds of log Z by a diffusion model: walks from white noise down to a density, and back.

Noise is added along a ladder, q(x_{j+1} | x_j) = N(d_j x_j, (1 - d_j^2) I), j = 0 .. k - 1, until
x_k is white noise. Scores of the noisy densities lead down again, by the Gaussian steps

    p(x_j | x_{j+1}) = N(m_j, r_j^2),    m_j = (x_{j+1} + (1 - d_j^2) score_j(x_{j+1})) / d_j,

with m_j the mean of x_j given x_{j+1} (Tweedie's formula). The density p_0, noised, has with walks
down the ratio

    log w = log p_0(x_0) - log N(x_k) + sum_j log q(x_{j+1} | x_j) - log p(x_j | x_{j+1}).

The mean of w over walks down is the normaliser Z of p_0, whatever the scores; that of 1 / w over
noised draws of p_0 is 1 / Z. So `bidirectional.sandwich` bounds log Z. Transitions of annealed
importance sampling have to keep up with a density that changes; these steps do not. What is left is
the error of the Gaussian steps, which falls as 1 / k, and that of the scores: the bounds meet if
score_j is that of p_0 with the noise of level j + 1.

Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Section 2.3, for the ratio; Bao et al. 2022,
arXiv:2201.06503, for the variances.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from scorejax.density.bidirectional import Sandwich, by_chunks, sandwich
from scorejax.numerics import gaussian_log_prob, sum_except_batch
from scorejax.random import fold_in, normal, row_keys, split
from scorejax.samplers.hamiltonian import LogProb

X = Float[Array, "b *d"]
LEAST_SHARE = 0.01
"""Of the variance (1 - d^2) / d^2 in that of a step down: wrong scores may leave none."""


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseLadder:
    """The decays d_j (k,) of a ladder, and its scores: score(j, x) at x = x_{j+1}, j traced.

    Raises: ValueError unless all decays lie between 0 and 1.
    """

    score: Callable[[Int[Array, ""], X], X]
    decays: Float[np.ndarray, "k"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "decays", np.asarray(self.decays, np.float64))
        if not (self.decays.size and np.all((self.decays > 0) & (self.decays < 1))):
            raise ValueError(f"decays need to lie between 0 and 1; got {self.decays}.")

    @property
    def variances(self) -> Float[np.ndarray, "k"]:
        """1 - d_j^2."""
        return 1 - self.decays**2


class Weighted(NamedTuple):
    """Log-weights of walks in nats, and their ends x."""

    log_weights: Float[Array, "b"]
    x: Float[Array, "b *d"]


def step_stds(
    rngs: Key[Array, "b"], ladder: NoiseLadder, x: X, *, chunk: int | None = None
) -> Float[Array, "k *d"]:
    """The stds r_j of steps down, for each coordinate, from draws x of p_0 or of what is like it.

    r_j^2 = (1 - d_j^2) / d_j^2 (1 - (1 - d_j^2) E[score_j^2]) is the mean variance of x_j given
    x_{j+1}, if the scores are true. Makes k score calls. Errors of the estimate bias neither bound;
    they widen the gap, by about 0.2 nats for 256 rows of 64 coordinates and 500 levels.
    Raises: ValueError unless `chunk` divides the number of rows.
    """

    def squares(rngs: Key[Array, "b"], x: X) -> Float[Array, "k *d"]:
        def step(x: X, j: Array) -> tuple[X, Array]:
            x = _noised(ladder, rngs, j, x)
            return x, jnp.mean(ladder.score(j, x) ** 2, axis=0)

        return jax.lax.scan(step, x, jnp.arange(len(ladder.decays)))[1]

    square = jnp.mean(by_chunks(squares, (rngs, x), chunk), axis=0)
    table = lambda values: jnp.asarray(values, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    share = jnp.clip(1 - table(ladder.variances) * square, LEAST_SHARE, 1.0)
    return jnp.sqrt(table(ladder.variances / ladder.decays**2) * share)


def walk_down(
    rngs: Key[Array, "b"], ladder: NoiseLadder, stds: Float[Array, "k *d"], log_prob: LogProb
) -> Weighted:
    """Walks from white noise to x_0, with log w of the density log_prob: k score calls.

    Each walk draws from its own key. Their x_0 are samples of the diffusion model.
    """
    start_rngs, step_rngs = split(rngs)
    start = normal(start_rngs, (len(rngs), *stds.shape[1:]), stds.dtype)

    def step(state: tuple[X, Array], j: Array) -> tuple[tuple[X, Array], None]:
        high, total = state
        mean = _mean(ladder, j, high)
        low = mean + stds[j][None] * normal(fold_in(step_rngs, j), high.shape, high.dtype)
        return (low, total + log_ratio(ladder, stds[j][None], j, low, high, mean)), None

    levels = jnp.arange(len(ladder.decays))[::-1]
    (x, total), _ = jax.lax.scan(step, (start, -gaussian_log_prob(start, 1.0)), levels)
    return Weighted(total + log_prob(x), x)


def walk_up(
    rngs: Key[Array, "b"],
    ladder: NoiseLadder,
    stds: Float[Array, "k *d"],
    log_prob: LogProb,
    x: X,
) -> Weighted:
    """Noises draws x_0 of a density to x_k, with the log-weights -log w of its log_prob.

    Each walk draws from its own key. Makes k score calls.
    """

    def step(state: tuple[X, Array], j: Array) -> tuple[tuple[X, Array], None]:
        low, total = state
        high = _noised(ladder, rngs, j, low)
        mean = _mean(ladder, j, high)
        return (high, total - log_ratio(ladder, stds[j][None], j, low, high, mean)), None

    levels = jnp.arange(len(ladder.decays))
    (x, total), _ = jax.lax.scan(step, (x, -log_prob(x)), levels)
    return Weighted(total + gaussian_log_prob(x, 1.0), x)


def diffusion_normalizer(
    rng: PRNGKeyArray,
    ladder: NoiseLadder,
    log_prob: LogProb,
    examples: Float[Array, "n *d"],
    target_draws: Float[Array, "n *d"],
    *,
    chunk: int | None = None,
    tolerance: float = 0.2,
) -> Sandwich:
    """Bounds of log Z of log_prob by n walks down the ladder, and from n draws of it up.

    The stds of steps come from `examples`, which may be data: they bias nothing. The lower bound
    always holds, the upper one if `target_draws` are draws of the density. Makes 3 k score calls,
    `chunk` rows at a time.
    Raises: ValueError unless `chunk` divides n, and as `sandwich`.
    """
    rngs = [row_keys(key, len(target_draws)) for key in jax.random.split(rng, 3)]
    stds = step_stds(rngs[0], ladder, examples, chunk=chunk)
    down = lambda rngs: walk_down(rngs, ladder, stds, log_prob).log_weights
    up = lambda rngs, x: walk_up(rngs, ladder, stds, log_prob, x).log_weights
    there = by_chunks(down, (rngs[1],), chunk)
    back = by_chunks(up, (rngs[2], target_draws), chunk)
    return sandwich(there.reshape(-1), back.reshape(-1), tolerance=tolerance)


def _noised(ladder: NoiseLadder, rngs: Key[Array, "b"], j: Array, x: X) -> X:
    """A draw of x_{j+1} given x_j."""
    decay, std = _tables(ladder, j, x)[:2]
    return decay * x + std * normal(fold_in(rngs, j), x.shape, x.dtype)


def _mean(ladder: NoiseLadder, j: Array, x: X) -> X:
    """m_j, the mean of x_j given x = x_{j+1}."""
    decay, _, variance = _tables(ladder, j, x)
    return (x + variance * ladder.score(j, x)) / decay


def log_ratio(
    ladder: NoiseLadder, std_down: Array, j: Array, low: X, high: X, mean: X
) -> Float[Array, "b"]:
    """log q(high | low) - log p(low | high), of steps between levels j and j + 1."""
    decay, std, _ = _tables(ladder, j, low)
    up, down = (high - decay * low) / std, (low - mean) / std_down
    return sum_except_batch((down**2 - up**2) / 2 + jnp.log(std_down / std))


def _tables(ladder: NoiseLadder, j: Array, like: X) -> tuple[Array, Array, Array]:
    """d_j, and std and variance of the noise that level j + 1 adds."""
    tables = ladder.decays, np.sqrt(ladder.variances), ladder.variances
    decay, std, variance = (jnp.asarray(table, like.dtype)[j] for table in tables)
    return decay, std, variance
