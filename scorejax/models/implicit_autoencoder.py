# SPDX-License-Identifier: Apache-2.0
"""An autoencoder with an implicit encoder, and a network for the score of its codes.

The encoder z = h(x, noise) has no tractable density. Training needs the density only for the
gradient of the entropy of the codes, which a score of the codes provides.

Source: Song et al. 2019, arXiv:1905.07088, Section 5.3, as in Pang et al. 2020, arXiv:2007.03317;
univariate scores: Meng et al. 2020, arXiv:2010.12810; with perceptrons for small images in place of
their convolutions.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.models.autoregressive import AutoregressiveModel
from scorejax.models.masked_ar import MaskedTrunk
from scorejax.models.mlp import SmoothPerceptron
from scorejax.models.triangular_encoder import TriangularEncoder
from scorejax.models.univariate import ScoreHead
from scorejax.typing import Shape

CONTEXT_FEATURES, HEAD_UNITS = 16, 32
"""Sizes of the univariate critic beyond its trunk."""


class ImplicitAutoencoder(nn.Module):
    """Encoder (x, noise) -> z, decoder z -> pixel logits, and a critic: the score of z.

    The encoder is a perceptron ("mlp") or "triangular"; the latter takes noise (b, latent). The
    critic is the "joint" score grad_z log q, the "univariate" scores d/dz_d log q(z_d | z_<d), or
    "none". With `conditional` q is q(z | x), otherwise the marginal q(z).

    Raises: ValueError for an unknown encoder or critic.
    """

    shape: Shape
    latent: int = 8
    hidden: int = 256
    num_hidden: int = 2
    conditional: bool = True
    encoder_kind: str = "mlp"
    critic_kind: str = "joint"

    def setup(self) -> None:
        sizes = {"hidden": self.hidden, "num_hidden": self.num_hidden}
        perceptron = lambda: SmoothPerceptron(self.latent, **sizes)
        encoders = {"mlp": perceptron, "triangular": lambda: TriangularEncoder(**sizes)}
        trunk = lambda: MaskedTrunk(features=CONTEXT_FEATURES, **sizes)
        univariate = lambda: AutoregressiveModel(trunk(), ScoreHead(HEAD_UNITS))
        critics = {"joint": perceptron, "univariate": univariate, "none": lambda: None}
        self.encoder = choose("encoder", self.encoder_kind, encoders)()
        self.decoder = SmoothPerceptron(math.prod(self.shape), **sizes)
        self.critic = choose("critic", self.critic_kind, critics)()

    def __call__(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """Score of the codes of x; calls every submodule, so that `init` creates all parameters."""
        z = self.encode(x, noise)
        decoded = 0 * jnp.sum(self.decode(z))
        return (z if self.critic is None else self.score(z, x)) + decoded

    def encode(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """Codes (b, latent) of images x and noise."""
        if self.encoder_kind == "triangular":
            return self.encoder(noise, _flat(x))
        return self.encoder(jnp.concatenate([_flat(x), noise], axis=1))

    def log_slopes(self, x: Float[Array, "b h w c"], noise: Float[Array, "b n"]) -> Array:
        """Logarithms (b, latent) of dz_d / dnoise_d, of a triangular encoder only."""
        return self.encoder.log_slopes(noise, _flat(x))

    def decode(self, z: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
        """Pixel logits of codes."""
        return self.decoder(z).reshape(len(z), *self.shape)

    def score(self, z: Float[Array, "b k"], x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """The critic's scores of the codes z, given x if `conditional`."""
        if self.critic_kind == "univariate":
            return self.head(z, self.contexts(z, x))
        inputs = [z, _flat(x)] if self.conditional else [z]
        return self.critic(jnp.concatenate(inputs, axis=1))

    def contexts(self, z: Float[Array, "b k"], x: Float[Array, "b h w c"]) -> Array:
        """Contexts (b, k, c) of a univariate critic, given x if `conditional`."""
        return self.critic.contexts(z, _flat(x) if self.conditional else None)

    def head(self, u: Float[Array, "*n"], c: Float[Array, "*n c"]) -> Float[Array, "*n"]:
        """Scores of a univariate critic at u in the contexts c."""
        return self.critic.head(u, c)


def _flat(x: Float[Array, "b *d"]) -> Float[Array, "b e"]:
    return x.reshape(len(x), -1)
