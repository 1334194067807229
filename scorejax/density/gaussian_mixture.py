# SPDX-License-Identifier: Apache-2.0
"""Mixtures of Gaussians with full covariances, fitted by expectation maximisation.

The number of components may be chosen by the likelihood of rows that are held out.

Source: Dempster et al. 1977; k-means++ starts after Arthur and Vassilvitskii 2007.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scorejax.choices import choose, require
from scorejax.density.gaussian import draw_classes
from scorejax.density.rows import Rows, checked_rows, held_out_split
from scorejax.random import Rng, normal, row_keys, split

NUM_COMPONENTS = (1, 2, 5, 10, 20)


class GaussianMixture(NamedTuple):
    """Weights, means and factors: whitening_k (upper triangular) times its transpose is the inverse
    of covariance k."""

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    whitening: Float[Array, "k d d"]


def fit(
    rng: PRNGKeyArray,
    x: Rows,
    *,
    num_components: int | Sequence[int] = NUM_COMPONENTS,
    start: str = "k-means++",
    ridge: float = 1e-4,
    tolerance: float = 1e-4,
    max_steps: int = 200,
    held_out: float = 0.1,
) -> GaussianMixture:
    """The mixture after `em_step` gained less than `tolerance` nats a row, or max_steps of them.

    Of several `num_components` it takes those of the largest likelihood on the `held_out` share of
    the rows, and fits again to all rows. `start` draws the first means: "k-means++" takes rows far
    from each other, "rows" any rows. `ridge` times the mean variance of the columns is added to the
    variances of all components, without which one could shrink to a row.

    Raises: ValueError for rows as `rows.checked_rows`, fewer rows than components, or an option out
    of range; or a singular covariance, which a ridge of 0 allows.
    """
    x, options = checked_rows(x), {"ridge": ridge, "tolerance": tolerance, "max_steps": max_steps}
    require(options, ("ridge", "tolerance"), lambda v: 0 <= v < math.inf, "to be at least 0")
    require(options, ("max_steps",), lambda v: v >= 1, "to be at least 1")
    choose("start", start, STARTS)
    candidates = (num_components,) if isinstance(num_components, int) else tuple(num_components)
    for num in candidates:
        if not 1 <= num <= len(x):
            raise ValueError(f"num_components needs to lie in 1 .. {len(x)}, the rows; got {num}")
    split_rng, start_rng = jax.random.split(rng)
    em = functools.partial(_em, start_rng, start=start, **options)
    best = candidates[0]
    if len(candidates) > 1:
        rows, others = held_out_split(split_rng, x, held_out)
        score = lambda num: float(log_prob(em(rows, num), others).mean())
        scores = {num: score(num) for num in candidates if num <= len(rows)}
        # A fit that failed has NaN, which compares as neither more nor less.
        best = max(scores, key=lambda num: (scores[num] == scores[num], scores[num], -num))
    mixture = em(x, best)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in mixture):
        raise ValueError(
            f"a mixture of {best} Gaussians needs covariances that are not singular; got one that "
            f"is. Raise ridge={ridge:g}, or fit fewer components"
        )
    return mixture


def component_log_probs(params: GaussianMixture, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Log-density of each row in each component, in nats, without the weights."""

    def one(component: tuple[Array, Array]) -> Float[Array, "b"]:
        mean, whitening = component
        square = jnp.sum(((x - mean[None]) @ whitening) ** 2, axis=1)
        log_det = jnp.sum(jnp.log(jnp.diag(whitening)))
        return log_det - (x.shape[1] * math.log(2 * math.pi) + square) / 2

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, (params.means, params.whitening)).T


def log_prob(params: GaussianMixture, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row, in nats."""
    return jax.nn.logsumexp(_log_joint(params, x), axis=1)


def _log_joint(params: GaussianMixture, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Logarithm of each component's weight times its density."""
    return component_log_probs(params, x) + params.log_weights[None]


def sample(rng: Rng, params: GaussianMixture, num: int) -> Float[Array, "num d"]:
    """Draws rows; row i is a function of key i, by default of `rng` and i alone."""
    which_rngs, noise_rngs = split(rng if rng.ndim else row_keys(rng, num))
    which = draw_classes(which_rngs, params.log_weights)
    noise = normal(noise_rngs, (num, params.means.shape[1]), params.means.dtype)
    roots = jax.vmap(lambda w, z: solve_triangular(w, z, trans=1, lower=False))
    return params.means[which] + roots(params.whitening[which], noise)


def em_step(
    params: GaussianMixture, x: Float[Array, "n d"], added_variance: float | Array
) -> tuple[GaussianMixture, Float[Array, ""]]:
    """The next mixture, and the mean log-density of the rows under this one.

    Without `added_variance` the mean log-density never falls from step to step.
    """
    log_joint = _log_joint(params, x)
    mean_log_prob = jnp.mean(jax.nn.logsumexp(log_joint, axis=1))
    return _maximised(jax.nn.softmax(log_joint, axis=1), x, added_variance), mean_log_prob


def _maximised(
    shares: Float[Array, "n k"], x: Float[Array, "n d"], added_variance: float | Array
) -> GaussianMixture:
    """The mixture of largest expected likelihood, given the components' shares of each row."""
    # A component without rows keeps a positive weight, and its mean stays finite.
    counts = shares.sum(axis=0) + 10 * jnp.finfo(x.dtype).eps
    with jax.default_matmul_precision("highest"):
        means = shares.T @ x / counts[:, None]
        covariance = lambda c: _covariance(*c[:2], x) / c[2]
        covariances = jax.lax.map(covariance, (shares.T, means, counts))
    return GaussianMixture(
        jnp.log(counts / counts.sum()), means, _whitening(covariances, added_variance)
    )


def _covariance(
    shares: Float[Array, "n"], mean: Float[Array, "d"], x: Float[Array, "n d"]
) -> Float[Array, "d d"]:
    off = jnp.sqrt(shares)[:, None] * (x - mean[None])
    return off.T @ off


def _whitening(
    covariances: Float[Array, "k d d"], added_variance: float | Array
) -> Float[Array, "k d d"]:
    eye = jnp.eye(covariances.shape[1], dtype=covariances.dtype)
    roots = jnp.linalg.cholesky(covariances + added_variance * eye[None])
    inverse = lambda root: solve_triangular(root, eye, lower=True).T
    return jax.vmap(inverse)(roots)


@functools.partial(jax.jit, static_argnames=("num_components", "start"))
def _em(
    rng: PRNGKeyArray,
    x: Float[Array, "n d"],
    num_components: int,
    *,
    start: str,
    ridge: Float[Array, ""],
    tolerance: Float[Array, ""],
    max_steps: Int[Array, ""],
) -> GaussianMixture:
    added_variance = ridge * jnp.mean(jnp.var(x, axis=0))
    centers = STARTS[start](rng, x, num_components)
    distances = jax.lax.map(lambda center: jnp.sum((x - center[None]) ** 2, axis=1), centers)
    shares = jax.nn.one_hot(jnp.argmin(distances, axis=0), num_components, dtype=x.dtype)
    first = _maximised(shares, x, added_variance)
    # With covariances of their own, components that start from an outlier would stay there.
    with jax.default_matmul_precision("highest"):
        off = x - shares @ first.means
        common = _whitening((off.T @ off / len(x))[None], added_variance)
    first = first._replace(whitening=jnp.broadcast_to(common, first.whitening.shape))

    def goes_on(carry: tuple) -> Array:
        step, _, before, now = carry
        # A first gain from -inf; NaN ends the loop.
        return (step < max_steps) & (now - before > tolerance)

    def body(carry: tuple) -> tuple:
        step, mixture, _, before = carry
        mixture, now = em_step(mixture, x, added_variance)
        return step + 1, mixture, before, now

    lowest = jnp.asarray(jnp.finfo(x.dtype).min, x.dtype)
    return jax.lax.while_loop(goes_on, body, (0, first, lowest, lowest / 2))[1]


def _distant_rows(rng: PRNGKeyArray, x: Float[Array, "n d"], num: int) -> Float[Array, "k d"]:
    """Rows drawn in turn, with probabilities proportional to the squared distance to the others."""
    first_rng, others_rng = jax.random.split(rng)

    def draw(square: Array, key: Array) -> tuple[Array, Array]:
        row = x[jax.random.categorical(key, jnp.log(square))]
        return jnp.minimum(square, jnp.sum((x - row[None]) ** 2, axis=1)), row

    first = x[jax.random.randint(first_rng, (), 0, len(x))]
    square = jnp.sum((x - first[None]) ** 2, axis=1)
    others = jax.lax.scan(draw, square, jax.random.split(others_rng, num - 1))[1]
    return jnp.concatenate([first[None], others])


def _any_rows(rng: PRNGKeyArray, x: Float[Array, "n d"], num: int) -> Float[Array, "k d"]:
    return jax.random.choice(rng, x, (num,), replace=False)


Start = Callable[[PRNGKeyArray, Float[Array, "n d"], int], Float[Array, "k d"]]
STARTS: dict[str, Start] = {"k-means++": _distant_rows, "rows": _any_rows}
"""(rng, x, num_components) -> the first means."""
