# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptrons with smooth units, for objectives that need second derivatives."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.choices import choose
from scorejax.models.energy_resnet import ACTIVATIONS
from scorejax.models.layers import dense, sinusoidal_embedding, softplus
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
            x = softplus(dense(self.hidden, name=f"hidden_{i}")(x))
        return dense(self.features, init_scale=self.init_scale, name="out")(x)


class LevelPerceptron(nn.Module):
    """F (x (b, d), label (b,)) -> (b,) of vectors; labels are noise levels 0, 1, ...

    Each of the `num_hidden` layers adds a linear map of the embedded level before its activation.
    With `spectral_norm` the kernels of all layers but the last are divided by their largest
    singular values, see `spectral_norm`. `dropout_rng` is ignored.

    x is multiplied by `input_scale`: the finest structure that training finds soon has a size of
    about 1 / input_scale. `num_frequencies` pairs sin(2 pi w.x), cos(2 pi w.x) are appended, with w
    (d,) of independent N(0, frequency^2), the same in all networks; they find structure of half the
    period 1 / frequency, and x itself keeps F from being almost periodic.

    Raises: ValueError if the activation is unknown, embedding_features < 4, input_scale or
    frequency is not positive, or num_frequencies < 0.
    """

    hidden: int = 128
    num_hidden: int = 3
    embedding_features: int = 32
    activation: str = "swish"
    spectral_norm: bool = False
    input_scale: float = 1.0
    num_frequencies: int = 0
    frequency: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("activation", self.activation, ACTIVATIONS)
        if self.embedding_features < 4:
            raise ValueError(
                f"embedding_features needs to be at least 4; got {self.embedding_features}"
            )
        for name in ("input_scale", "frequency"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} needs to be a positive number; got {getattr(self, name)}")
        if self.num_frequencies < 0:
            raise ValueError(f"num_frequencies needs to be 0 or more; got {self.num_frequencies}")

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
        x = self._features(x)
        for i in range(self.num_hidden):
            x = activation(layer(f"hidden_{i}")(x) + layer(f"level_{i}")(temb))
        return dense(1, name="out")(x)[:, 0]

    def _features(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        scaled = self.input_scale * x
        if not self.num_frequencies:
            return scaled
        drawn = np.random.default_rng(0).normal(size=(x.shape[1], self.num_frequencies))
        phase = x @ jnp.asarray(2 * math.pi * self.frequency * drawn, x.dtype)
        return jnp.concatenate([scaled, jnp.sin(phase), jnp.cos(phase)], axis=1)


class SpectralPerceptron(nn.Module):
    """An energy (x (b, d)) -> (b,) by tanh units, of kernels with largest singular value 1.

    Its slope is at most 1 and its range bounded. With `learned_scales` two positive numbers that
    are learned multiply x and the output, and the bounds; without them it cannot have the score of
    a standard normal density, whose length is about sqrt(d).
    """

    hidden: int = 256
    num_hidden: int = 2
    learned_scales: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b"]:
        x = self._scale("log_input_scale") * x
        for i in range(self.num_hidden):
            x = jnp.tanh(SpectralDense(self.hidden, name=f"hidden_{i}")(x))
        return self._scale("log_output_scale") * SpectralDense(1, name="out")(x)[:, 0]

    def _scale(self, name: str) -> Float[Array, ""] | float:
        if not self.learned_scales:
            return 1.0
        return jnp.exp(self.param(name, nn.initializers.zeros, ()))
