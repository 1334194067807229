# SPDX-License-Identifier: Apache-2.0
"""A triangular encoder: code d is an increasing function of noise d, given the noise before it.

The noise before d and the codes before d determine each other, so that this is
z_d = g(z_<d, noise_d, x), in one pass. Any density of codes has such a map (Knothe and Rosenblatt).
The gradient of z_d in the parameters is a function of z_<=d, which makes entropy gradients by
univariate scores exact on average; and -log q(z | x) is log N(noise) - sum of `log_slopes`, so that
such an encoder does have a density, against which estimates can be held.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scorejax.models.layers import softplus
from scorejax.models.masked_ar import MaskedTrunk


class TriangularEncoder(nn.Module):
    """(noise (b, k), x (b, e)) -> codes (b, k), triangular and increasing in the noise.

    Given the noise before it, z = shift + scale (e + sum_j w_j tanh(a_j (e - m_j))), with positive
    scale, w and a. Where the slope is large the density of z is small: z can have several modes.
    """

    hidden: int
    num_hidden: int
    num_bends: int = 4

    def setup(self) -> None:
        self.trunk = MaskedTrunk(self.hidden, self.num_hidden, 2 + 3 * self.num_bends)

    def __call__(self, noise: Float[Array, "b k"], x: Float[Array, "b e"]) -> Float[Array, "b k"]:
        return self.transform(noise, self.contexts(noise, x))

    def contexts(self, noise: Float[Array, "b k"], x: Float[Array, "b e"]) -> Array:
        """Parameters (b, k, c) of the transform of each coordinate, from the noise before it."""
        return self.trunk.contexts(noise, x)

    def transform(self, noise: Float[Array, "*n"], c: Float[Array, "*n c"]) -> Float[Array, "*n"]:
        """The increasing map of each coordinate, element by element."""
        bends = jnp.split(c[..., 2:], 3, axis=-1)
        # A new encoder has bends at -1.5 .. 1.5 that are slight.
        spread = np.linspace(-1.5, 1.5, self.num_bends).reshape((1,) * noise.ndim + (-1,))
        weights, steepness = softplus(bends[0] - 2), softplus(bends[1] + 1)
        risen = weights * jnp.tanh(steepness * (noise[..., None] - bends[2] - spread))
        return c[..., 0] + jnp.exp(c[..., 1]) * (noise + jnp.sum(risen, axis=-1))

    def log_slopes(self, noise: Float[Array, "b k"], x: Float[Array, "b e"]) -> Array:
        """Logarithms of dz_d / dnoise_d, (b, k): entropy is their expected sum plus the noise's."""
        c = self.contexts(noise, x)
        along = lambda e: self.transform(e, c)
        return jnp.log(jax.jvp(along, (noise,), (jnp.ones_like(noise),))[1])
