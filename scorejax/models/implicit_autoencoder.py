# SPDX-License-Identifier: Apache-2.0
"""An autoencoder with an implicit encoder, and a network for the score of its codes.

The encoder z = h(x, noise) has no tractable density. Training needs the density only for the
gradient of the entropy of the codes, which the score of the codes provides.

Source: Song et al. 2019, arXiv:1905.07088, Section 5.3, as in Pang et al. 2020, arXiv:2007.03317;
with perceptrons for small images in place of their convolutions.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.mlp import SmoothPerceptron
from scorejax.typing import Shape


class ImplicitAutoencoder(nn.Module):
    """Encoder (x, noise) -> z, decoder z -> pixel logits, and the score of z.

    With `conditional` the score is grad_z log q(z | x), otherwise that of the marginal q(z).
    """

    shape: Shape
    latent: int = 8
    hidden: int = 256
    num_hidden: int = 2
    conditional: bool = True

    def setup(self) -> None:
        sizes = {"hidden": self.hidden, "num_hidden": self.num_hidden}
        self.encoder = SmoothPerceptron(self.latent, **sizes)
        self.decoder = SmoothPerceptron(math.prod(self.shape), **sizes)
        self.critic = SmoothPerceptron(self.latent, **sizes)

    def __call__(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """Score of the codes of x; calls every submodule, so that `init` creates all parameters."""
        z = self.encode(x, noise)
        return self.score(z, x) + 0 * jnp.sum(self.decode(z))

    def encode(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """Codes (b, latent) of images x and noise."""
        return self.encoder(jnp.concatenate([x.reshape(len(x), -1), noise], axis=1))

    def decode(self, z: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
        """Pixel logits of codes."""
        return self.decoder(z).reshape(len(z), *self.shape)

    def score(self, z: Float[Array, "b k"], x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Learned grad_z log q(z | x), or grad_z log q(z) if not `conditional`."""
        inputs = [z, x.reshape(len(x), -1)] if self.conditional else [z]
        return self.critic(jnp.concatenate(inputs, axis=1))
