# SPDX-License-Identifier: Apache-2.0
"""A mixture of Gaussian kernels on learned features, evaluated at learned inducing points.

Source: Wenliang et al. 2019, arXiv:1811.08357, Section 3.1.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.layers import dense, softplus


class SkipPerceptron(nn.Module):
    """Smooth features: a softplus perceptron with `num_hidden` layers, plus a linear map of x."""

    features: int
    num_hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b c"]:
        h = x
        for i in range(self.num_hidden):
            h = softplus(dense(self.features, name=f"hidden_{i}")(h))
        return dense(self.features, name="out")(h) + dense(self.features, name="skip")(x)


class DeepKernel(nn.Module):
    """k(x, z_m) for inducing points z_m: (x (b, d)) -> (b, m), values in [0, 1].

    k(x, z) = sum_r p_r exp(-|phi_r(x) - phi_r(z)|^2 / (2 width_r^2)), where the p_r add up to one
    and |.|^2 is the mean over the features; a sum over 30 features would start kernels near zero.
    Points, features, widths and p_r are learned; the widths start at exp(log_widths).
    """

    dim: int
    num_inducing: int = 200
    features: int = 30
    num_hidden: int = 2
    log_widths: Sequence[float] = (0.0, 0.5185, 1.0)

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b m"]:
        points = self.param("inducing", nn.initializers.normal(1.0), (self.num_inducing, self.dim))
        num_kernels = len(self.log_widths)
        start = lambda rng, shape: jnp.asarray(self.log_widths, x.dtype).reshape(shape)
        widths = jnp.exp(self.param("log_width", start, (num_kernels,)))
        shares = nn.softmax(self.param("log_share", nn.initializers.zeros, (num_kernels,)))
        kernel = jnp.zeros((x.shape[0], self.num_inducing), x.dtype)
        for r in range(num_kernels):
            phi = SkipPerceptron(self.features, self.num_hidden, name=f"features_{r}")
            features = phi(jnp.concatenate([x, points]))
            squares = squared_distances(features[: x.shape[0]], features[x.shape[0] :])
            mean = squares / self.features
            kernel = kernel + shares[r] * jnp.exp(-mean / (2 * widths[r] ** 2))
        return kernel


def squared_distances(x: Float[Array, "n c"], y: Float[Array, "m c"]) -> Float[Array, "n m"]:
    """|x_i - y_j|^2 as a sum of squared differences, accurate also for small distances."""
    return jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
