# SPDX-License-Identifier: Apache-2.0
"""Residual networks that map an image to its energy, -log p up to a constant, in nats.

There is no normalisation, so the energy of an image does not depend on the batch. The activation is
smooth, since score matching needs second derivatives and those of ReLU are zero. `ResidualTrunk` is
shared by such networks; the head, which maps its features to the energy, is a separate module.

Source: the deep energy model of Pang et al. 2020, arXiv:2007.03317, after Li et al. 2019,
arXiv:1910.07762.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.models.fir import mean_downsample
from scorejax.models.layers import Conv, dense, softplus
from scorejax.models.ncsnpp import require_halvings

Activation = Callable[[Array], Array]


def centred_softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + e^x) - log 2, which is zero at zero."""
    return softplus(x) - math.log(2)


ACTIVATIONS = {"softplus": centred_softplus, "elu": nn.elu, "swish": nn.swish}
"""Activations whose second derivative is not zero almost everywhere."""


class ResidualBlock(nn.Module):
    """Residual block of two (activation, 3x3 convolution) pairs.

    The second convolution changes the width, and a 1x1 convolution that of the shortcut. `down`
    halves the size of both paths by averaging 2 x 2 pixels.
    """

    features: int
    down: bool = False
    activation: Activation = centred_softplus

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
        shrink = mean_downsample if self.down else lambda h: h
        h = Conv(x.shape[-1], name="conv_0")(self.activation(x))
        h = shrink(Conv(self.features, name="conv_1")(self.activation(h)))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, name="shortcut")(x)
        return shrink(x) + h


class ResidualTrunk(nn.Module):
    """A convolution to `features` channels, then stages that each halve the size of the image.

    Stage k has `num_blocks` blocks of multipliers[k] * features channels.
    """

    features: int
    multipliers: Sequence[int]
    num_blocks: int
    activation: Activation = centred_softplus

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w d"]:
        require_halvings(x.shape, len(self.multipliers))
        h = Conv(self.features, name="conv_in")(x)
        for stage, multiplier in enumerate(self.multipliers):
            for i in range(self.num_blocks):
                width, name = multiplier * self.features, f"stage_{stage}_block_{i}"
                h = ResidualBlock(width, i == 0, self.activation, name=name)(h)
        return h


class QuadraticEnergy(nn.Module):
    """Quadratic head (w_1 . h + b_1)(w_2 . h + b_2) + w_3 . h^2 + b_3 on flattened features h."""

    @nn.compact
    def __call__(self, h: Float[Array, "b *d"]) -> Float[Array, "b"]:
        h = h.reshape(h.shape[0], -1)
        first, second = (dense(1, name=f"linear_{i}")(h) for i in range(2))
        return (first * second + dense(1, name="square")(h**2))[:, 0]


class EnergyResNet(nn.Module):
    """The energy (x (b, h, w, c)) -> (b,) of images, with a quadratic head.

    Defaults are the paper's for images of 32 x 32 pixels, whose last feature map is 4 x 4.
    Raises: ValueError if the activation is unknown, or the image is not square or cannot be halved
    once per stage.
    """

    features: int = 128
    multipliers: Sequence[int] = (2, 4, 8)
    num_blocks: int = 3
    activation: str = "softplus"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("activation", self.activation, ACTIVATIONS)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b"]:
        activation = ACTIVATIONS[self.activation]
        trunk = ResidualTrunk(
            self.features, self.multipliers, self.num_blocks, activation, name="trunk"
        )
        return QuadraticEnergy(name="head")(trunk(x))
