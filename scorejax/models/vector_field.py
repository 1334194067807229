# SPDX-License-Identifier: Apache-2.0
"""A perceptron from vectors to vectors whose exact divergence costs no more than its value.

With two hidden layers the trace of the Jacobian K1 D1 K2 D2 K3, D the slopes of the units, is the
bilinear form d1 (K2 * (K3 K1)^T) d2 of the slopes. Its kernel is a function of the parameters
alone, so that the divergence takes one product more than the value, not one derivative for each
coordinate.

Source: ours; the trace of a composition of linear maps.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import require
from scorejax.models.layers import TimeEmbedding, dense, fan_avg_uniform, sinusoidal_embedding

MAX_PERIOD = 100.0
"""Ratio of the fastest to the slowest frequency of the embedded label."""


class VectorField(nn.Module):
    """F (x (b, dim), label (b,)) -> (b, dim), for real labels; zero when new.

    Two layers of `hidden` swish units, to which an embedding of the label adds; the output has a
    linear term in x, coordinate by coordinate, with coefficients of the label.

    Raises: ValueError if a size is below 1, or embedding_features below 4.
    """

    dim: int
    hidden: int = 256
    embedding_features: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(vars(self), ("dim", "hidden"), lambda v: v >= 1, "to be at least 1")
        require(vars(self), ("embedding_features",), lambda v: v >= 4, "to be at least 4")

    def setup(self) -> None:
        dim, hidden, init = self.dim, self.hidden, fan_avg_uniform()
        self.kernel_in = self.param("kernel_in", init, (dim, hidden))
        self.kernel_hidden = self.param("kernel_hidden", init, (hidden, hidden))
        self.kernel_out = self.param("kernel_out", nn.initializers.zeros, (hidden, dim))
        self.embedding = TimeEmbedding(hidden)
        self.biases = [dense(hidden, name=None) for _ in range(2)]
        self.affine = dense(2 * dim, name=None, init_scale=0.0)

    def __call__(self, x: Float[Array, "b d"], label: Float[Array, "b"]) -> Float[Array, "b d"]:
        units, gain, shift = self._units(x, label)
        return nn.swish(units[1]) @ self.kernel_out + gain * x + shift

    def trace_kernel(self) -> Float[Array, "h h"]:
        """The kernel of the trace, for `with_divergence`."""
        return self.kernel_hidden * (self.kernel_out @ self.kernel_in).T

    def with_divergence(
        self, x: Float[Array, "b d"], label: Float[Array, "b"], trace_kernel: Float[Array, "h h"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
        """F and its divergence in x."""
        units, gain, shift = self._units(x, label)
        slopes = [_swish_slope(u) for u in units]
        divergence = jnp.sum((slopes[0] @ trace_kernel) * slopes[1], axis=1) + jnp.sum(gain, axis=1)
        return nn.swish(units[1]) @ self.kernel_out + gain * x + shift, divergence

    def _units(self, x: Array, label: Array) -> tuple[tuple[Array, Array], Array, Array]:
        """Inputs of both layers' units; coefficient and constant of the linear term."""
        features = sinusoidal_embedding(label, self.embedding_features, max_period=MAX_PERIOD)
        level = nn.swish(self.embedding(features))
        first = x @ self.kernel_in + self.biases[0](level)
        second = nn.swish(first) @ self.kernel_hidden + self.biases[1](level)
        gain, shift = jnp.split(self.affine(level), 2, axis=1)
        return (first, second), gain, shift


def _swish_slope(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    share = jax.nn.sigmoid(x)
    return share * (1 + x * (1 - share))
