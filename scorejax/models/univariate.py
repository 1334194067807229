# SPDX-License-Identifier: Apache-2.0
"""Heads of autoregressive models: the score of one number u in a context c.

Heads work element by element: u (*n) and c (*n, h) give s (*n). Axes of size 1 broadcast, and what
depends on the context alone is computed at its size: over a grid, u (b, d, g) with c (b, d, 1, h),
once. `sigma`, the standard deviation of noise in u, broadcasts against u.

Source: Meng et al. 2020, arXiv:2010.12810, for conditionals without a normaliser.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp, ndtr
from jaxtyping import Array, Float
from scipy import special

from scorejax.choices import choose, require
from scorejax.models.energy_resnet import ACTIVATIONS
from scorejax.models.layers import (
    Dense,
    dense,
    fan_avg_uniform,
    require_fourier_series,
    series_frequencies,
    softplus,
    waves,
)

SMOOTH = {name: ACTIVATIONS[name] for name in ("softplus", "swish")}
"""Activations with continuous second derivatives; training differentiates heads twice."""

LEVEL_FREQUENCIES = (0.5, 1.0, 2.0)
"""Angular frequencies in log sigma of the embedded noise level."""


class ScoreHead(nn.Module):
    """Score of a univariate density that needs no normaliser: (u, c, sigma or None) -> s.

    With mean m, variance v > min_variance and a bounded r, all functions of the context, and z the
    standardised (u - m) / sqrt(v + sigma^2),

        s = -z / sqrt(v + sigma^2) + r(z, u, c, sigma) sqrt(v / (v + sigma^2)) / sigma

    or, without sigma, s = (r(z, u, c) - z) / sqrt(v). The linear term makes exp of the integral of
    s integrable whatever the parameters. If v is the variance of u given c, denoising asks for an r
    of unit variance at every sigma. A new head has m = 0, v = 1 and r = 0. Initialise it with a
    sigma if it is to take one: the noise level has parameters of its own.

    r is a perceptron of `num_hidden` layers, the last of tanh units; context and noise level add to
    each layer. `num_frequencies` pairs of sines and cosines of u join z in its input: the Fourier
    series of period num_frequencies / max_frequency, which should exceed the range of the data, up
    to `max_frequency` cycles per unit of u. They resolve structure, such as grey levels, of half
    the shortest period. Noise damps those of periods below sigma.

    Raises: ValueError if a size is below 1, the activation is not smooth, or a number is out of
    range.
    """

    hidden: int = 64
    num_hidden: int = 2
    num_frequencies: int = 0
    max_frequency: float = 1.0
    activation: str = "softplus"
    min_variance: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        values = vars(self)
        require(values, ("hidden", "num_hidden"), lambda v: v >= 1, "to be at least 1")
        require_fourier_series(values)
        require(values, ("min_variance",), lambda v: 0 < v < 1, "to lie in (0, 1)")
        choose("activation", self.activation, SMOOTH)

    def setup(self) -> None:
        zero = lambda: dense(1, init_scale=0.0, name=None)  # named by its attribute
        self.mean, self.spread = zero(), zero()

    def variance(self, c: Float[Array, "*m h"]) -> Float[Array, "*m"]:
        """The variance v in each context."""
        raw = self.spread(c)[..., 0]
        return self.min_variance + softplus(raw + _softplus_inverse(1 - self.min_variance))

    @nn.compact
    def __call__(
        self, u: Float[Array, "*n"], c: Float[Array, "*m h"], sigma: Array | float | None = None
    ) -> Float[Array, "*k"]:
        sigma = None if sigma is None else _with_axes(sigma, u)
        mean, variance = self.mean(c)[..., 0], self.variance(c)
        scale = jnp.sqrt(variance if sigma is None else variance + sigma**2)
        z = (u - mean) / scale
        r = self._perceptron(u, z, c, sigma)
        if sigma is None:
            return (r - z) / scale
        return r * jnp.sqrt(variance) / (sigma * scale) - z / scale

    def _perceptron(self, u: Array, z: Array, c: Array, sigma: Array | None) -> Array:
        linear = lambda name: Dense(
            self.hidden, use_bias=False, kernel_init=fan_avg_uniform(), name=name
        )
        # Bends of both signs all over the range of z: with the usual start, linear near zero, the
        # same training left two to four times the error on multi-modal densities.
        steep = nn.initializers.normal(2.0)
        h = Dense(self.hidden, kernel_init=steep, bias_init=steep, name="hidden_0")(z[..., None])
        if self.num_frequencies:
            h = h + linear("fourier")(self._fourier(u, sigma))
        for i in range(self.num_hidden):
            if i:
                h = dense(self.hidden, name=f"hidden_{i}")(SMOOTH[self.activation](h))
            h = h + linear(f"context_{i}")(c)
            if sigma is not None:
                h = h + linear(f"level_{i}")(_level_features(sigma))
        return dense(1, init_scale=0.0, name="out")(jnp.tanh(h))[..., 0]

    def _fourier(self, u: Float[Array, "*n"], sigma: Array | None) -> Float[Array, "*k f"]:
        frequencies = series_frequencies(self.num_frequencies, self.max_frequency, u)
        series = waves(frequencies * u[..., None])
        if sigma is None:
            return series
        # As if convolved with noise of half the std: between modes that are several sigma apart,
        # scores vary faster than noise of the full std would let any density vary.
        damping = jnp.exp(-((frequencies * sigma[..., None] / 2) ** 2) / 2)
        return series * jnp.concatenate([damping, damping], axis=-1)


class StandardDensity(NamedTuple):
    """A density on the line of mean 0, by functions of z."""

    log_prob: Callable[[Array], Array]
    score: Callable[[Array], Array]
    cdf: Callable[[Array], Array]


GAUSSIAN = StandardDensity(
    log_prob=lambda z: -(z**2) / 2 - math.log(2 * math.pi) / 2, score=lambda z: -z, cdf=ndtr
)
LOGISTIC = StandardDensity(
    log_prob=lambda z: -softplus(z) - softplus(-z),
    score=lambda z: -jnp.tanh(z / 2),
    cdf=nn.sigmoid,
)
KINDS = {"gaussian": GAUSSIAN, "logistic": LOGISTIC}


class Components(NamedTuple):
    """Mixture components along the last axis."""

    log_weights: Float[Array, "*n k"]
    means: Float[Array, "*n k"]
    scales: Float[Array, "*n k"]


class MixtureHead(nn.Module):
    """Mixture of Gaussian or logistic densities whose parameters are affine in the context.

    Calling it gives the score of the mixture: (u, c, sigma or None) -> s. Scales exceed
    `min_scale`. With sigma, a Gaussian mixture is convolved with N(0, sigma^2). The components of a
    new head cover the standard normal density.

    Raises: ValueError if the kind is unknown, num_components < 1, min_scale is not positive, or a
    logistic mixture gets a sigma.
    """

    num_components: int
    kind: str = "gaussian"
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("kind of mixture", self.kind, KINDS)
        require(vars(self), ("num_components",), lambda v: v >= 1, "to be at least 1")
        require(vars(self), ("min_scale",), lambda v: 0 < v < math.inf, "to be a positive number")

    def __call__(
        self, u: Float[Array, "*n"], c: Float[Array, "*m h"], sigma: Array | float | None = None
    ) -> Float[Array, "*k"]:
        mixture = self.components(c, sigma)
        shares = nn.softmax(self._log_joint(u, mixture), axis=-1)
        scores = KINDS[self.kind].score(_standardised(u, mixture)) / mixture.scales
        return jnp.sum(shares * scores, axis=-1)

    def log_prob(
        self, u: Float[Array, "*n"], c: Float[Array, "*m h"], sigma: Array | float | None = None
    ) -> Float[Array, "*k"]:
        """Log-density at u, in nats."""
        return logsumexp(self._log_joint(u, self.components(c, sigma)), axis=-1)

    def cdf(
        self, u: Float[Array, "*n"], c: Float[Array, "*m h"], sigma: Array | float | None = None
    ) -> Float[Array, "*k"]:
        """Probability of values up to u."""
        mixture = self.components(c, sigma)
        cdfs = KINDS[self.kind].cdf(_standardised(u, mixture))
        return jnp.sum(jnp.exp(mixture.log_weights) * cdfs, axis=-1)

    def variance(self, c: Float[Array, "*m h"]) -> Float[Array, "*m"]:
        """The variance in each context; of logistic mixtures, with squared scales for variances."""
        log_weights, means, scales = self.components(c)
        weights = jnp.exp(log_weights)
        center = jnp.sum(weights * means, axis=-1, keepdims=True)
        return jnp.sum(weights * (scales**2 + (means - center) ** 2), axis=-1)

    @nn.compact
    def components(self, c: Float[Array, "*m h"], sigma: Array | float | None = None) -> Components:
        """The mixture in each context."""
        if sigma is not None and self.kind != "gaussian":
            raise ValueError(
                f"sigma needs a mixture of kind 'gaussian', which noise keeps; got {self.kind!r}"
            )
        num = self.num_components
        raw = dense(3 * num, init_scale=0.0, name="out")(c)
        logits, shifts, widths = jnp.split(raw, 3, axis=-1)
        # Components that start equal would stay so where the context is a constant.
        quantiles = special.ndtri((np.arange(num) + 0.5) / num)
        means = shifts + _last_axis(quantiles, shifts[..., 0])
        scales = self.min_scale + softplus(widths + _softplus_inverse(1 / math.sqrt(num)))
        if sigma is not None:
            scales = jnp.sqrt(scales**2 + _with_axes(sigma, c[..., 0])[..., None] ** 2)
        return Components(nn.log_softmax(logits, axis=-1), means, scales)

    def _log_joint(self, u: Float[Array, "*n"], mixture: Components) -> Float[Array, "*n k"]:
        """Logarithm of each component's weight times its density at u."""
        log_densities = KINDS[self.kind].log_prob(_standardised(u, mixture))
        return mixture.log_weights - jnp.log(mixture.scales) + log_densities


def _standardised(u: Float[Array, "*n"], mixture: Components) -> Float[Array, "*n k"]:
    return (u[..., None] - mixture.means) / mixture.scales


def _level_features(sigma: Float[Array, "*n"]) -> Float[Array, "*n 7"]:
    """log sigma with sines and cosines of it."""
    level = jnp.log(sigma)[..., None]
    angles = level * _last_axis(np.array(LEVEL_FREQUENCIES), sigma)
    return jnp.concatenate([level, jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _softplus_inverse(y: float) -> float:
    return math.log(math.expm1(y))


def _last_axis(values: np.ndarray, like: Float[Array, "*n"]) -> Array:
    """Constants along an axis that follows those of `like`."""
    return jnp.asarray(values, like.dtype).reshape((1,) * like.ndim + (-1,))


def _with_axes(values: Array, like: Float[Array, "*n"]) -> Array:
    """Values with as many axes as `like`, the new ones in front."""
    values = jnp.asarray(values, like.dtype)
    return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
