# SPDX-License-Identifier: Apache-2.0
"""Residual networks that map an image to its energy, -log p up to a constant, in nats.

Nothing is normalised, so that an energy does not depend on what else is in the batch, and the
activation is smooth: score matching sees second derivatives, which those of ReLU hide. The stem and
the stages are common to such networks; what reads the energy off the last image is a function of
its own.

Source: the deep energy model of Pang et al. 2020, arXiv:2007.03317, after Li et al. 2019,
arXiv:1910.07762.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.models.fir import mean_downsample
from scorejax.models.layers import Conv, dense
from scorejax.models.ncsnpp import require_halvings

Activation = Callable[[Array], Array]


def centred_softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + e^x) - log 2, which is zero at zero."""
    return nn.softplus(x) - math.log(2)


ACTIVATIONS = {"softplus": centred_softplus, "elu": nn.elu, "swish": nn.swish}
"""Those with a second derivative that is not zero almost everywhere."""


class ResidualBlock(nn.Module):
    """Adds to x the result of two (activation, 3x3 convolution).

    With `down`, both become the means of 2 x 2 pixels; a change of width is left to the second
    convolution, and to one of 1x1 beside it.
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
    """A convolution to `features` channels, then stages that each halve the image.

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
    """(w_1 . h + b_1)(w_2 . h + b_2) + w_3 . h^2 + b_3 of all the features h of an example."""

    @nn.compact
    def __call__(self, h: Float[Array, "b *d"]) -> Float[Array, "b"]:
        h = h.reshape(h.shape[0], -1)
        first, second = (dense(1, name=f"linear_{i}")(h) for i in range(2))
        return (first * second + dense(1, name="square")(h**2))[:, 0]


class EnergyResNet(nn.Module):
    """The energy (x (b, h, w, c)) -> (b,) of images, with a quadratic head.

    Defaults are those of the paper for images of 32 x 32 pixels, which end at 4 x 4.
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
