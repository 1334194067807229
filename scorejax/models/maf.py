# SPDX-License-Identifier: Apache-2.0
"""Masked autoregressive flow: affine maps of each coordinate, given the coordinates before it.

A block maps x_i to (x_i - m_i) exp(-a_i), with m_i and a_i from the coordinates before i by one
masked network, so that its log-determinant is -sum a_i. Blocks take the coordinates in turn from
first to last and from last to first. The density takes one pass; its inverse, for samples, goes
coordinate by coordinate.

Source: Papamakarios et al. 2017, arXiv:1705.07057.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import require
from scorejax.models.flow import GaussianFlow
from scorejax.models.masked_ar import MaskedTrunk


class MaskedAutoregressiveFlow(GaussianFlow):
    """Flow on rows of `dim` coordinates; calling it on x (b, d) returns log_prob(x).

    |a_i| < `max_log_scale` in each of the `num_blocks` blocks. A new flow is the identity.

    Raises: ValueError if a size is below 1, max_log_scale is not positive, or the activation is
    unknown.
    """

    dim: int
    num_blocks: int = 5
    hidden: int = 256
    num_hidden: int = 2
    max_log_scale: float = 3.0
    activation: str = "swish"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(vars(self), ("dim", "num_blocks"), lambda v: v >= 1, "to be at least 1")
        positive = lambda v: 0 < v < math.inf
        require(vars(self), ("max_log_scale",), positive, "to be a positive number")

    def setup(self) -> None:
        orders = tuple(range(self.dim)), tuple(reversed(range(self.dim)))
        self.blocks = [
            MaskedTrunk(
                self.hidden, self.num_hidden, 2, orders[i % 2], self.activation, init_scale=0.0
            )
            for i in range(self.num_blocks)
        ]

    def forward(self, x: Float[Array, "b d"]) -> tuple[Float[Array, "b d"], Float[Array, "b"]]:
        """Latent codes of x and the log-determinants of the Jacobian."""
        log_det = jnp.zeros_like(x[:, 0])
        for block in self.blocks:
            shift, log_scale = self._affine(block.contexts(x))
            x = (x - shift) * jnp.exp(-log_scale)
            log_det = log_det - jnp.sum(log_scale, axis=1)
        return x, log_det

    def inverse(self, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """Rows whose latent codes are z; about as much work as `forward`, in d steps a block."""
        for block in reversed(self.blocks):
            z = self._inverse_of(block, z)
        return z

    def _affine(self, c: Float[Array, "*b 2"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        """Shift m and log-scale a from a context."""
        return c[..., 0], self.max_log_scale * jnp.tanh(c[..., 1] / self.max_log_scale)

    def _inverse_of(self, block: MaskedTrunk, z: Float[Array, "b d"]) -> Float[Array, "b d"]:
        # Linen modules cannot be called inside of a scan while they are bound.
        trunk, variables = block.unbind()

        def step(carry: tuple, place: tuple[Array, Array]) -> tuple[tuple, None]:
            (cache, x), (position, index) = carry, place
            cache, c = trunk.apply(variables, cache, x, position, method="advance")
            shift, log_scale = self._affine(c)
            return (cache, x.at[:, index].set(z[:, index] * jnp.exp(log_scale) + shift)), None

        places = jnp.arange(self.dim), jnp.asarray(trunk.dimension_order(self.dim))
        return jax.lax.scan(step, (trunk.empty(z), jnp.zeros_like(z)), places)[0][1]
