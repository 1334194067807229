# SPDX-License-Identifier: Apache-2.0
"""NICE: a flow of additive couplings, whose density is exact.

Half of the coordinates stays and moves the other half by a function of itself, so that each
coupling preserves volume and is undone by subtraction. At the end every coordinate has a scale of
its own, and the latent code is logistic. All functions are smooth, as score matching needs them:
softplus in place of the paper's ReLU.

Source: Dinh et al. 2014, arXiv:1410.8516.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.models.mlp import SmoothPerceptron
from scorejax.numerics import sum_except_batch
from scorejax.typing import Shape

Halves = tuple[Array, Array]


class NICE(nn.Module):
    """The flow of examples with `dim` coordinates: called on x (b, *d), it returns log_prob(x).

    Coordinates are told apart as even or odd; couplings move the one and the other by turns.
    Defaults are those of the paper for MNIST.
    """

    dim: int
    num_couplings: int = 4
    hidden: int = 1000
    num_hidden: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 2:
            raise ValueError(f"a flow of couplings needs dim of at least 2; got {self.dim}")

    def setup(self) -> None:
        sizes = self.dim - self.dim // 2, self.dim // 2
        self.shifts = [
            SmoothPerceptron(sizes[1 - i % 2], self.hidden, self.num_hidden, init_scale=0.0)
            for i in range(self.num_couplings)
        ]
        self.log_scale = self.param("log_scale", nn.initializers.zeros, (self.dim,))

    def __call__(self, x: Float[Array, "b *d"]) -> Float[Array, "b"]:
        return self.log_prob(x)

    def log_prob(self, x: Float[Array, "b *d"]) -> Float[Array, "b"]:
        """Log-density of each example, in nats."""
        log_det = jnp.sum(self.log_scale)
        return logistic_log_prob(self.forward(x)) + log_det

    def forward(self, x: Float[Array, "b *d"]) -> Float[Array, "b n"]:
        """The latent code of x: even coordinates first, then odd ones."""
        x = x.reshape(x.shape[0], -1)
        halves = x[:, ::2], x[:, 1::2]
        for i, shift in enumerate(self.shifts):
            halves = _moved(halves, i, shift(halves[i % 2]))
        return jnp.concatenate(halves, axis=1) * jnp.exp(self.log_scale)[None]

    def inverse(self, z: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """The example, flat, whose latent code is z."""
        z = z * jnp.exp(-self.log_scale)[None]
        halves = z[:, : self.dim - self.dim // 2], z[:, self.dim - self.dim // 2 :]
        for i, shift in reversed(list(enumerate(self.shifts))):
            halves = _moved(halves, i, -shift(halves[i % 2]))
        return jnp.zeros_like(z).at[:, ::2].set(halves[0]).at[:, 1::2].set(halves[1])

    def sample(self, rng: PRNGKeyArray, shape: Shape) -> Float[Array, "b *d"]:
        """Independent draws of `shape` (b, *d), of which each example has `dim` numbers."""
        z = jax.random.logistic(rng, (shape[0], self.dim))
        return self.inverse(z).reshape(shape)


def logistic_log_prob(z: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Log-density in nats of independent standard logistic variables."""
    return -sum_except_batch(nn.softplus(z) + nn.softplus(-z))


def _moved(halves: Halves, number: int, by: Array) -> Halves:
    """The halves after coupling `number`, which moves that which it does not look at."""
    even, odd = halves
    return (even, odd + by) if number % 2 == 0 else (even + by, odd)
