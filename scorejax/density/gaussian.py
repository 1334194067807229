# SPDX-License-Identifier: Apache-2.0
"""Gaussian densities: one for all rows, or one for each class with a covariance that they share.

By class, the log-density of class c is -D_c^2 / 2 plus a constant, with D_c the Mahalanobis
distance to the mean of class c. The mixture over classes uses labels; the one Gaussian uses none.

Source: Lee et al. 2018, arXiv:1807.03888, Section 2.1, for the covariance that classes share.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from scorejax.choices import require
from scorejax.density.rows import Rows, checked_labels, checked_rows
from scorejax.random import Rng, draw_rows, normal, row_keys, split


class Gaussians(NamedTuple):
    """Gaussians of one covariance, whose inverse is whitening @ whitening.T.

    `means` are (mean - center) @ whitening: whitened, as all distances are.
    """

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    center: Float[Array, "d"]
    whitening: Float[Array, "d d"]


def fit(rng: PRNGKeyArray, x: Rows, *, ridge: float = 0.0) -> Gaussians:
    """The Gaussian of largest likelihood; nothing is random.

    `ridge` times the mean variance of the columns is added to all variances.
    Raises: ValueError for rows as `rows.checked_rows`, a negative ridge, or a singular covariance.
    """
    del rng
    rows = np.asarray(checked_rows(x), float)
    return of_classes(rows, np.zeros(len(rows), int), 1, ridge)


def fit_by_class(
    rng: PRNGKeyArray,
    x: Rows,
    labels: ArrayLike,
    *,
    num_classes: int | None = None,
    ridge: float = 0.0,
) -> Gaussians:
    """The Gaussians of largest likelihood by class, weighted by how frequent the classes are.

    `num_classes` defaults to the largest label plus one; other arguments as in `fit`.
    Raises: ValueError as `fit`, for labels that are not one of 0 .. num_classes - 1 for each row,
    or a class without rows.
    """
    del rng
    rows = np.asarray(checked_rows(x), float)
    return of_classes(rows, *checked_labels(labels, len(rows), num_classes), ridge)


def of_classes(
    rows: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"], num_classes: int, ridge: float
) -> Gaussians:
    """`fit_by_class` of rows and labels that were checked, in double precision.

    Raises: ValueError for a negative ridge or a singular covariance.
    """
    require({"ridge": ridge}, ("ridge",), lambda v: 0 <= v < math.inf, "to be at least 0")
    one_hot = np.eye(num_classes)[labels]
    counts = one_hot.sum(axis=0)
    means = one_hot.T @ rows / counts[:, None]
    off = rows - means[labels]
    covariance = off.T @ off / len(rows)
    mean_variance = np.trace(covariance) / len(covariance)
    if not mean_variance > 0:
        raise ValueError("a Gaussian needs rows that vary; all are constant within a class")
    covariance += ridge * mean_variance * np.eye(len(covariance))
    variances, directions = np.linalg.eigh(covariance)
    if not variances[0] > 1e-12 * variances[-1]:
        raise ValueError(
            f"a Gaussian needs a covariance that is not singular; of {len(rows)} rows it has "
            f"variances from {variances[0]:.1e} to {variances[-1]:.1e}. Set ridge, or reduce "
            "the columns by scorejax.data.features"
        )
    whitening, center = directions / np.sqrt(variances)[None], rows.mean(axis=0)
    values = np.log(counts / len(rows)), (means - center[None]) @ whitening, center, whitening
    return Gaussians(*(jnp.asarray(value, float) for value in values))


def class_log_probs(params: Gaussians, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Log-density of each row in each class, in nats, without the weights of the classes."""
    with jax.default_matmul_precision("highest"):
        white = (x - params.center[None]) @ params.whitening
        # Not |x|^2 - 2 x.m + |m|^2, whose digits cancel close to a mean.
        square = jax.lax.map(lambda mean: jnp.sum((white - mean[None]) ** 2, axis=1), params.means)
        log_det = jnp.linalg.slogdet(params.whitening)[1]
    return log_det - (x.shape[1] * math.log(2 * math.pi) + square.T) / 2


def log_prob(params: Gaussians, x: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Log-density of each row, in nats: the mixture of all classes."""
    joint = class_log_probs(params, x) + params.log_weights[None]
    return jax.nn.logsumexp(joint, axis=1)


def sample(rng: Rng, params: Gaussians, num: int) -> Float[Array, "num d"]:
    """Draws rows; row i is a function of key i, by default of `rng` and i alone."""
    class_rngs, noise_rngs = split(rng if rng.ndim else row_keys(rng, num))
    classes = draw_classes(class_rngs, params.log_weights)
    noise = normal(noise_rngs, (num, params.center.size), params.center.dtype)
    white = params.means[classes] + noise
    return params.center[None] + jnp.linalg.solve(params.whitening.T, white.T).T


def draw_classes(rngs: Rng, log_weights: Float[Array, "k"]) -> Int[Array, "num"]:
    """Draws a class for each key."""
    draw = lambda key, shape: jax.random.categorical(key, log_weights, shape=shape)
    return draw_rows(draw, rngs, rngs.shape)
