# SPDX-License-Identifier: Apache-2.0
"""Multilayer perceptrons with smooth units, for objectives that need second derivatives."""

import flax.linen as nn
from jaxtyping import Array, Float

from scorejax.models.layers import dense


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
