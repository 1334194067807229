# SPDX-License-Identifier: Apache-2.0
"""RealNVP for vectors, with the steps of Glow: actnorm, invertible linear map, affine coupling.

A coupling scales and shifts one half of the coordinates by functions of the other half. The linear
maps between couplings mix all coordinates; their kernels are products of triangular matrices, so
that determinant and inverse are cheap. Density and samples take one pass each.

Source: Dinh et al. 2017, arXiv:1605.08803; Kingma and Dhariwal 2018, arXiv:1807.03039, Section 3.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from scorejax.choices import require
from scorejax.models.flow import GaussianFlow
from scorejax.models.mlp import SmoothPerceptron

SMALLEST_VARIANCE = 1e-6
"""Added to the variances of the batch that initialises an ActNorm."""


class ActNorm(nn.Module):
    """y = (x + bias) exp(log_scale), standardised on the batch that initialises it."""

    def __call__(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, ""]]:
        """y and the log-determinant, which is that of all rows."""
        bias, log_scale = self._parameters(x)
        return (x + bias[None]) * jnp.exp(log_scale)[None], jnp.sum(log_scale)

    def inverse(self, y: Float[Array, "b d"]) -> Float[Array, "b d"]:
        bias, log_scale = self._parameters(y)
        return y * jnp.exp(-log_scale)[None] - bias[None]

    @nn.compact
    def _parameters(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
        spread = lambda rng: -jnp.log(jnp.var(x, axis=0) + SMALLEST_VARIANCE) / 2
        bias = self.param("bias", lambda rng: -jnp.mean(x, axis=0))
        return bias, self.param("log_scale", spread)


class InvertibleLinear(nn.Module):
    """y = x P L U, with L unit lower and U upper triangular; at first a rotation drawn by `seed`.

    The permutation P and the signs of U's diagonal stay as they are, and P L U is invertible
    whatever the parameters.
    """

    seed: int

    def __call__(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, ""]]:
        """y and the log-determinant, which is that of all rows."""
        order, lower, upper, log_diagonal = self._factors(x.shape[1])
        return x[:, order] @ lower @ upper, jnp.sum(log_diagonal)

    def inverse(self, y: Float[Array, "b d"]) -> Float[Array, "b d"]:
        order, lower, upper, _ = self._factors(y.shape[1])
        x = solve_triangular(upper, y.T, trans=1, lower=False)
        x = solve_triangular(lower, x, trans=1, lower=True, unit_diagonal=True).T
        return x[:, np.argsort(order)]

    @nn.compact
    def _factors(self, dim: int) -> tuple[np.ndarray, Array, Array, Float[Array, "d"]]:
        """P as an order of coordinates, L, U and the logarithms of |U's diagonal|."""
        drawn = np.random.default_rng(self.seed).normal(size=(dim, dim))
        permutation, lower, upper = scipy.linalg.lu(np.linalg.qr(drawn)[0])
        start = lambda values: lambda rng: jnp.asarray(values, float)
        diagonal = np.diag(upper)
        log_diagonal = self.param("log_diagonal", start(np.log(np.abs(diagonal))))
        lower = jnp.tril(self.param("lower", start(np.tril(lower, -1))), -1)
        upper = jnp.triu(self.param("upper", start(np.triu(upper, 1))), 1)
        signed = jnp.asarray(np.sign(diagonal), log_diagonal.dtype) * jnp.exp(log_diagonal)
        lower = lower + jnp.eye(dim, dtype=lower.dtype)
        return permutation.argmax(axis=0), lower, upper + jnp.diag(signed), log_diagonal


class AffineCoupling(nn.Module):
    """y_2 = x_2 exp(s(x_1)) + t(x_1) for the second half, |s| < max_log_scale; y_1 = x_1."""

    hidden: int
    num_hidden: int
    max_log_scale: float

    def __call__(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
        """y and the log-determinants."""
        fixed, moved, log_scale, shift = self._affine(x)
        y = jnp.concatenate([fixed, moved * jnp.exp(log_scale) + shift], axis=1)
        return y, jnp.sum(log_scale, axis=1)

    def inverse(self, y: Float[Array, "b d"]) -> Float[Array, "b d"]:
        fixed, moved, log_scale, shift = self._affine(y)
        return jnp.concatenate([fixed, (moved - shift) * jnp.exp(-log_scale)], axis=1)

    @nn.compact
    def _affine(self, x: Float[Array, "b d"]) -> tuple[Array, Array, Array, Array]:
        """First half, second half, log-scale and shift of the second half."""
        fixed, moved = jnp.split(x, [x.shape[1] // 2], axis=1)
        network = SmoothPerceptron(2 * moved.shape[1], self.hidden, self.num_hidden, init_scale=0.0)
        raw, shift = jnp.split(network(fixed), 2, axis=1)
        return fixed, moved, self.max_log_scale * jnp.tanh(raw / self.max_log_scale), shift


class RealNVP(GaussianFlow):
    """Flow on rows of `dim` coordinates; calling it on x (b, d) returns log_prob(x).

    Each of the `num_blocks` blocks is an ActNorm, an InvertibleLinear and an AffineCoupling.
    Initialise it with a batch of data. Codes of a new flow are standardised and rotated rows.

    Raises: ValueError if dim < 2, a size is below 1, or max_log_scale is not positive.
    """

    dim: int
    num_blocks: int = 8
    hidden: int = 256
    num_hidden: int = 2
    max_log_scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        values = vars(self)
        require(values, ("dim",), lambda v: v >= 2, "to be at least 2, for two halves")
        sizes = ("num_blocks", "hidden", "num_hidden")
        require(values, sizes, lambda v: v >= 1, "to be at least 1")
        positive = lambda v: 0 < v < math.inf
        require(values, ("max_log_scale",), positive, "to be a positive number")

    def setup(self) -> None:
        coupling = (self.hidden, self.num_hidden, self.max_log_scale)
        self.layers = [
            layer
            for i in range(self.num_blocks)
            for layer in (ActNorm(), InvertibleLinear(i), AffineCoupling(*coupling))
        ]

    def forward(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
        """Latent codes of x and the log-determinants of the Jacobian."""
        total = jnp.zeros_like(x[:, 0])
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Rows whose latent codes are z."""
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z
