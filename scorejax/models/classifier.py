# SPDX-License-Identifier: Apache-2.0
"""Classifiers of images that return their features beside their logits.

Both normalise by groups and draw nothing: the logits and features of an image are a function of
that image alone, whatever the batch, in training and in evaluation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from scorejax.models.layers import Conv, GroupNorm, dense
from scorejax.models.wide_resnet import WideTrunk


class Classified(NamedTuple):
    """Logits and features of images.

    ReLU sets many `features` to exactly zero, where they have no density; densities are fitted to
    `pre_activations` instead.
    """

    logits: Float[Array, "b k"]
    features: Float[Array, "b d"]
    """Inputs of the linear map to the logits."""
    pre_activations: Float[Array, "b d"]
    """Features before the last ReLU; from `captured`, where no ReLU is known, the features."""


class ConvClassifier(nn.Module):
    """A small convolutional classifier: x (b, h, w, c) -> Classified.

    3x3 convolutions of `widths` channels, from the second on with stride 2, then the mean over
    pixels, a hidden layer of `features` units and a linear map to the logits.
    Raises: ValueError, as `GroupNorm`, for a width that is not a multiple of its groups.
    """

    num_classes: int = 10
    widths: Sequence[int] = (32, 64)
    features: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Classified:
        for i, width in enumerate(self.widths):
            x = Conv(width, use_bias=False, down=i > 0, name=f"conv_{i}")(x)
            x = nn.relu(GroupNorm(name=f"norm_{i}")(x))
        pre_activations = dense(self.features, name="features")(x.mean(axis=(1, 2)))
        features = nn.relu(pre_activations)
        return Classified(dense(self.num_classes, name="out")(features), features, pre_activations)


class WideClassifier(WideTrunk):
    """WRN-28-10 of images without noise: x (b, h, w, c) -> Classified.

    Features are means over the pixels of the last feature map, after and before its ReLU. Scaling
    an image or adding a constant to it changes nothing, since the network standardises it.
    Source: Zagoruyko and Komodakis 2016, arXiv:1605.07146.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Classified:
        h = self.last_map(x, None)
        features = nn.relu(h).mean(axis=(1, 2))
        return Classified(self.logits(features), features, h.mean(axis=(1, 2)))
