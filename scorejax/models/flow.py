# SPDX-License-Identifier: Apache-2.0
"""Density and samples of a normalising flow to independent standard normal codes."""

import flax.linen as nn
from jaxtyping import Array, Float

from scorejax.numerics import gaussian_log_prob
from scorejax.random import Rng, normal
from scorejax.typing import Shape


class GaussianFlow(nn.Module):
    """A flow on rows; calling it on x (b, d) returns log_prob(x).

    Subclasses have `forward`, x (b, d) -> codes (b, d) and log-determinants (b,), and `inverse`.
    """

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b"]:
        return self.log_prob(x)

    def log_prob(self, x: Float[Array, "b d"]) -> Float[Array, "b"]:
        """Log-density of each row, in nats."""
        z, log_det = self.forward(x)
        return gaussian_log_prob(z, 1.0) + log_det

    def sample(self, rng: Rng, shape: Shape) -> Float[Array, "b d"]:
        """Draws independent rows of `shape` (b, d), each from its own key if there are several."""
        return self.inverse(normal(rng, shape))
