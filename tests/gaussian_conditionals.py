# SPDX-License-Identifier: Apache-2.0
"""Autoregressive models of Gaussian data, whose every number has a closed form.

Data N(0, covariance) have the conditionals N(w_d . x_<d, V_d).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Conditionals(NamedTuple):
    """Regression weights (d, d), strictly lower triangular, and variances (d,)."""

    weights: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, covariance: np.ndarray) -> "Conditionals":
        weights = np.zeros_like(covariance)
        for d in range(1, len(covariance)):
            weights[d, :d] = np.linalg.solve(covariance[:d, :d], covariance[:d, d])
        return cls(weights, np.diag(np.linalg.cholesky(covariance)) ** 2)

    def contexts(self, x: Float[Array, "b d"]) -> Float[Array, "b d 2"]:
        """The mean and the variance of each dimension given earlier ones."""
        mean = x @ jnp.asarray(self.weights.T, x.dtype)
        variance = jnp.broadcast_to(jnp.asarray(self.variances, x.dtype)[None], x.shape)
        return jnp.stack([mean, variance], axis=-1)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of data with these conditionals."""
        inverse = np.linalg.inv(np.eye(len(self.weights)) - self.weights)
        return inverse @ np.diag(self.variances) @ inverse.T


def gaussian_head(u: Array, c: Array, sigma: Array | float = 0.0) -> Array:
    """Score of N(mean, variance + sigma^2), which the context has."""
    return -(u - c[..., 0]) / (c[..., 1] + sigma**2)


def covariance(dim: int, seed: int = 0) -> np.ndarray:
    """A random covariance of condition number about 30."""
    factor = np.random.default_rng(seed).normal(size=(dim, dim))
    return factor @ factor.T / dim + 0.3 * np.eye(dim)


def draws(covariance: np.ndarray, num: int, seed: int = 1) -> np.ndarray:
    """Independent draws (num, d) of N(0, covariance)."""
    noise = np.random.default_rng(seed).normal(size=(num, len(covariance)))
    return (noise @ np.linalg.cholesky(covariance).T).astype(np.float32)
