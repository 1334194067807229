# SPDX-License-Identifier: Apache-2.0
"""Data distributions for which every SDE's answers are known in closed form.

Gaussian data stay Gaussian and mixtures stay mixtures under a linear SDE, so that the score, the
density, the probability flow and the moments of every linear sampler can be written down. Arrays
are (b, d); times are (b,). All follow the dtype of their arguments.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Data N(mean, covariance): mean (d,), covariance (d, d)."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def isotropic(cls, mean: float, std: float, dim: int) -> "Gaussian":
        """N(mean 1, std^2 I) in `dim` dimensions."""
        return cls(np.full(dim, mean), std**2 * np.eye(dim))

    @property
    def dim(self) -> int:
        return len(self.mean)

    def sample(self, rng, num: int):
        """Draws from the data."""
        noise = jax.random.normal(rng, (num, self.dim))
        root = np.linalg.cholesky(self.covariance)
        return jnp.asarray(self.mean, noise.dtype)[None] + noise @ jnp.asarray(root.T, noise.dtype)

    def moments(self, sde, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of x_t."""
        scale, std = (np.asarray(value)[0] for value in sde.marginal(jnp.asarray([t])))
        return scale * self.mean, scale**2 * self.covariance + std**2 * np.eye(self.dim)

    def _spectrum(self, sde, x, t):
        """x_t - E x_t in the eigenbasis (b, d), the variances there (b, d), and the basis."""
        eigenvalues, basis = np.linalg.eigh(self.covariance)
        eigenvalues, basis, mean = (
            jnp.asarray(value, x.dtype) for value in (eigenvalues, basis, self.mean)
        )
        scale, std = (value[:, None] for value in sde.marginal(t))
        return (x - scale * mean[None]) @ basis, scale**2 * eigenvalues[None] + std**2, basis

    def score_fn(self, sde) -> Callable:
        """The score of p_t."""

        def score(x, t):
            centred, variance, basis = self._spectrum(sde, x, t)
            return -(centred / variance) @ basis.T

        return score

    def log_prob(self, sde, x, t):
        """Log-density of x_t in nats, (b,)."""
        centred, variance, _ = self._spectrum(sde, x, t)
        return -jnp.sum(centred**2 / variance + jnp.log(2 * math.pi * variance), axis=-1) / 2

    def flow_map(self, sde, x, t_from: float, t_to: float):
        """Where the probability-flow ODE takes x from time t_from to time t_to."""
        start, end = (jnp.full(x.shape[:1], t, x.dtype) for t in (t_from, t_to))
        centred, before, basis = self._spectrum(sde, x, start)
        _, after, _ = self._spectrum(sde, x, end)
        mean = sde.marginal(end)[0][:, None] * jnp.asarray(self.mean, x.dtype)[None]
        return mean + (centred * jnp.sqrt(after / before)) @ basis.T

    def flow_log_prob(self, sde, x, t_min: float):
        """Log-density that the flow with its true prior at t_max gives x at t_min, in nats.

        Not the density of N(E x_t, Cov x_t) at x: the prior is not p_{t_max}.
        """
        start, end = (jnp.full(x.shape[:1], t, x.dtype) for t in (t_min, sde.t_max))
        _, before, _ = self._spectrum(sde, x, start)
        _, after, _ = self._spectrum(sde, x, end)
        latent = self.flow_map(sde, x, t_min, sde.t_max)
        return sde.prior_log_prob(latent) + jnp.sum(jnp.log(after / before), axis=-1) / 2


def isotropic_score_fn(sde, mean: float, std: float) -> Callable:
    """The score of p_t for data N(mean 1, std^2 I), without the basis that `Gaussian` goes through.

    In hundreds of dimensions that basis takes most of the time of a chain, and of its tracing.
    """

    def score(x, t):
        scale, noise = (value[:, None] for value in sde.marginal(t))
        return (scale * mean - x) / (scale**2 * std**2 + noise**2)

    return score


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """Data sum_k weights_k N(means_k, stds_k^2 I): weights (k,), means (k, d), stds (k,)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, rng, num: int):
        """Draws from the data."""
        which_rng, noise_rng = jax.random.split(rng)
        which = jax.random.choice(which_rng, len(self.weights), (num,), p=jnp.asarray(self.weights))
        noise = jax.random.normal(noise_rng, (num, self.dim))
        means, stds = jnp.asarray(self.means, noise.dtype), jnp.asarray(self.stds, noise.dtype)
        return means[which] + stds[which][:, None] * noise

    def sample_at(self, rng, sde, t: float, num: int):
        """Draws from p_t."""
        data_rng, noise_rng = jax.random.split(rng)
        x = self.sample(data_rng, num)
        scale, std = sde.marginal(jnp.full((num,), t, x.dtype))
        return scale[:, None] * x + std[:, None] * jax.random.normal(noise_rng, x.shape, x.dtype)

    def moments(self, sde, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean (d,) and covariance (d, d) of x_t."""
        scale, std = (np.asarray(value)[0] for value in sde.marginal(jnp.asarray([t])))
        mean = self.weights @ self.means
        centred = self.means - mean
        between = np.einsum("k,ki,kj->ij", self.weights, centred, centred)
        within = (self.weights @ self.stds**2) * np.eye(self.dim)
        return scale * mean, scale**2 * (between + within) + std**2 * np.eye(self.dim)

    def component_log_probs(self, sde, x, t):
        """Log of weight_k times the density of component k at x_t, in nats, (b, k)."""
        scale, std = (value[:, None] for value in sde.marginal(t))
        weights, means, stds = (
            jnp.asarray(value, x.dtype) for value in (self.weights, self.means, self.stds)
        )
        variance = scale**2 * stds[None] ** 2 + std**2
        square = jnp.sum((x[:, None] - scale[..., None] * means[None]) ** 2, axis=-1)
        normaliser = self.dim * jnp.log(2 * math.pi * variance)
        return jnp.log(weights)[None] - (square / variance + normaliser) / 2

    def log_prob(self, sde, x, t):
        """Log-density of x_t in nats, (b,)."""
        return jax.nn.logsumexp(self.component_log_probs(sde, x, t), axis=-1)

    def score_fn(self, sde) -> Callable:
        """The score of p_t."""

        def score(x, t):
            scale, std = (value[:, None] for value in sde.marginal(t))
            means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
            posterior = jax.nn.softmax(self.component_log_probs(sde, x, t), axis=-1)
            pull = posterior / (scale**2 * stds[None] ** 2 + std**2)
            return scale * (pull @ means) - jnp.sum(pull, axis=-1, keepdims=True) * x

        return score


def affine_coefficients(update: Callable, t):
    """P, Q and W of an update (x, t, z) -> P x + Q + W z on one-dimensional data, at each time.

    `update` sees one example a time, x and z of shape (b, 1); the answers have the shape of t.
    """
    zero, one = jnp.zeros((len(t), 1), t.dtype), jnp.ones((len(t), 1), t.dtype)
    shift = update(zero, t, zero)
    slope, noise = update(one, t, zero) - shift, update(zero, t, one) - shift
    return tuple(np.asarray(value)[:, 0] for value in (slope, shift, noise))


def moment_recursion(updates: list[Callable], t, mean: float, variance: float):
    """Mean and variance after every affine update in turn at each of the times in order."""
    coefficients = [affine_coefficients(update, t) for update in updates]
    for step in range(len(t)):
        for slope, shift, noise in coefficients:
            mean = slope[step] * mean + shift[step]
            variance = slope[step] ** 2 * variance + noise[step] ** 2
    return mean, variance
