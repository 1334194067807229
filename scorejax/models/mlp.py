# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptrons with smooth units, for objectives that need second derivatives."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scorejax.choices import choose
from scorejax.models.energy_resnet import ACTIVATIONS
from scorejax.models.layers import dense, sinusoidal_embedding
from scorejax.models.spectral_norm import SpectralDense, to_unit


class SmoothPerceptron(nn.Module):
    """`num_hidden` layers of `hidden` softplus units and a linear output layer.

    With `init_scale` 0 the initial output is close to zero everywhere.
    """

    features: int
    hidden: int
    num_hidden: int
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        for i in range(self.num_hidden):
            x = nn.softplus(dense(self.hidden, name=f"hidden_{i}")(x))
        return dense(self.features, init_scale=self.init_scale, name="out")(x)


class LevelPerceptron(nn.Module):
    """F (x (b, d), label (b,)) -> (b,) of vectors; labels are noise levels 0, 1, ...

    Each of the `num_hidden` layers adds a linear map of the embedded level before its activation.
    With `spectral_norm` the kernels of all layers but the last are divided by their largest
    singular values, see `spectral_norm`. `dropout_rng` is ignored.

    Raises: ValueError if the activation is unknown, or embedding_features < 4.
    """

    hidden: int = 128
    num_hidden: int = 3
    embedding_features: int = 32
    activation: str = "swish"
    spectral_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("activation", self.activation, ACTIVATIONS)
        if self.embedding_features < 4:
            raise ValueError(
                f"embedding_features needs to be at least 4; got {self.embedding_features}"
            )

    @nn.compact
    def __call__(
        self, x: Float[Array, "b d"], label: Int[Array, "b"], *, dropout_rng: Any = None
    ) -> Float[Array, "b"]:
        activation, rescale = ACTIVATIONS[self.activation], to_unit if self.spectral_norm else None
        layer = lambda name: SpectralDense(self.hidden, rescale, name=name)
        embedding = sinusoidal_embedding(
            label.astype(jnp.result_type(float)), self.embedding_features
        )
        temb = activation(layer("temb")(embedding))
        for i in range(self.num_hidden):
            x = activation(layer(f"hidden_{i}")(x) + layer(f"level_{i}")(temb))
        return dense(1, name="out")(x)[:, 0]
