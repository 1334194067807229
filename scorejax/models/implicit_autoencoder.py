# SPDX-License-Identifier: Apache-2.0
"""An autoencoder whose encoder is a sampler without a density, and the score of its codes.

z = h(x, noise) for any function h: what its density would be wanted for, the gradient of its
entropy, the score of the codes stands in for.

Source: Song et al. 2019, arXiv:1905.07088, Section 5.3, as in Pang et al. 2020, arXiv:2007.03317;
perceptrons here, for images of few pixels, in place of their convolutions.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.models.mlp import SmoothPerceptron
from scorejax.typing import Shape


class ImplicitAutoencoder(nn.Module):
    """Encoder (x, noise) -> z, decoder z -> logits of the pixels, and a score of z.

    The score is that of z given x if `conditional`, else of the codes of all x together.
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
        """The score of the codes of x, by way of everything: for initialisation."""
        z = self.encode(x, noise)
        return self.score(z, x) + 0 * jnp.sum(self.decode(z))

    def encode(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """A code (b, latent) of each image, drawn by its noise."""
        return self.encoder(jnp.concatenate([x.reshape(len(x), -1), noise], axis=1))

    def decode(self, z: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
        """Logits of the pixels."""
        return self.decoder(z).reshape(len(z), *self.shape)

    def score(self, z: Float[Array, "b k"], x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """grad_z log q(z | x), or of q(z), as it is learned."""
        given = [x.reshape(len(x), -1)] if self.conditional else []
        return self.critic(jnp.concatenate([z, *given], axis=1))
