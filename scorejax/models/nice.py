# SPDX-License-Identifier: Apache-2.0
"""NICE: a normalising flow of additive couplings with an exact density.

Each coupling shifts one half of the coordinates by a function of the other half, so it preserves
volume and is inverted by subtraction. A final layer scales each coordinate; the prior of the latent
code is logistic. Softplus replaces the paper's ReLU, since score matching needs smooth functions.

Source: Dinh et al. 2014, arXiv:1410.8516.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from scorejax.models.layers import softplus
from scorejax.models.mlp import SmoothPerceptron
from scorejax.numerics import sum_except_batch
from scorejax.typing import Shape

Halves = tuple[Array, Array]


class NICE(nn.Module):
    """Flow on examples with `dim` coordinates; calling it on x (b, *d) returns log_prob(x).

    Couplings alternately shift the odd and the even coordinates. Defaults are the paper's for
    MNIST. Raises: ValueError if dim < 2.
    """

    dim: int
    num_couplings: int = 4
    hidden: int = 1000
    num_hidden: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 2:
            raise ValueError(f"NICE needs dim of at least 2; got {self.dim}")

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
        """Latent codes of x: even coordinates first, then odd ones."""
        x = x.reshape(x.shape[0], -1)
        halves = x[:, ::2], x[:, 1::2]
        for i, shift in enumerate(self.shifts):
            halves = _moved(halves, i, shift(halves[i % 2]))
        return jnp.concatenate(halves, axis=1) * jnp.exp(self.log_scale)[None]

    def inverse(self, z: Float[Array, "b n"]) -> Float[Array, "b n"]:
        """Flattened examples whose latent codes are z."""
        z = z * jnp.exp(-self.log_scale)[None]
        halves = z[:, : self.dim - self.dim // 2], z[:, self.dim - self.dim // 2 :]
        for i, shift in reversed(list(enumerate(self.shifts))):
            halves = _moved(halves, i, -shift(halves[i % 2]))
        return jnp.zeros_like(z).at[:, ::2].set(halves[0]).at[:, 1::2].set(halves[1])

    def sample(self, rng: PRNGKeyArray, shape: Shape) -> Float[Array, "b *d"]:
        """Draws independent examples of `shape` (b, *d), where *d multiplies to `dim`."""
        z = jax.random.logistic(rng, (shape[0], self.dim))
        return self.inverse(z).reshape(shape)


def logistic_log_prob(z: Float[Array, "b *d"]) -> Float[Array, "b"]:
    """Log-density of independent standard logistic variables, in nats."""
    return -sum_except_batch(softplus(z) + softplus(-z))


def _moved(halves: Halves, number: int, by: Array) -> Halves:
    """Applies coupling `number`: even numbers shift the odd half, odd numbers the even half."""
    even, odd = halves
    return (even, odd + by) if number % 2 == 0 else (even + by, odd)
