# SPDX-License-Identifier: Apache-2.0
"""Autoregressive models of a causal trunk and a head that all dimensions share.

The trunk computes contexts, in one pass or dimension by dimension; the head is a function of one
number u and its context. Training and sampling call them apart: the derivative of the head in u
must not pass through the contexts, and a chain or a grid in u needs the context once.

Source: Meng et al. 2020, arXiv:2010.12810.
"""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.random import Rng
from scorejax.typing import PyTree


class AutoregressiveModel(nn.Module):
    """Scores d/dx_d log p(x_d | x_<d) of all dimensions: (x (b, *d), sigma or None) -> (b, *d).

    `trunk` is a network such as `MaskedTrunk`, `univariate` a `ScoreHead` or a `MixtureHead`. The
    methods of a mixture's density work dimension by dimension: u (*n), c (*n, h) -> (*n).
    """

    trunk: nn.Module
    univariate: nn.Module

    def __call__(
        self,
        x: Float[Array, "b *d"],
        sigma: Array | float | None = None,
        condition: Float[Array, "b e"] | None = None,
    ) -> Float[Array, "b *d"]:
        return self.head(x, self.contexts(x, condition), sigma)

    def contexts(
        self,
        x: Float[Array, "b *d"],
        condition: Float[Array, "b e"] | None = None,
        *,
        dropout_rng: Rng | None = None,
    ) -> Float[Array, "b *d h"]:
        """Contexts of all dimensions, each a function of earlier dimensions only."""
        return self.trunk.contexts(x, condition, dropout_rng=dropout_rng)

    def head(
        self, u: Float[Array, "*n"], c: Float[Array, "*n h"], sigma: Array | float | None = None
    ) -> Float[Array, "*n"]:
        """Scores of the univariate conditionals at u."""
        return self.univariate(u, c, sigma)

    def variance(self, c: Float[Array, "*n h"]) -> Float[Array, "*n"]:
        """The scale of the univariate conditionals, as the head has it: about their variance."""
        return self.univariate.variance(c)

    def log_prob(self, u: Float[Array, "*n"], c: Float[Array, "*n h"]) -> Float[Array, "*n"]:
        """Log-densities of the univariate conditionals at u, in nats; for mixtures only."""
        return self.univariate.log_prob(u, c)

    def cdf(self, u: Float[Array, "*n"], c: Float[Array, "*n h"]) -> Float[Array, "*n"]:
        """Distribution functions of the univariate conditionals at u; for mixtures only."""
        return self.univariate.cdf(u, c)

    def empty(self, x_example: Float[Array, "b *d"]) -> PyTree:
        """Cache with which `advance` starts, for examples of the same shape and type."""
        return self.trunk.empty(x_example)

    def advance(
        self,
        cache: PyTree,
        x: Float[Array, "b *d"],
        position: int | Int[Array, ""],
        condition: Float[Array, "b e"] | None = None,
    ) -> tuple[PyTree, Float[Array, "b h"]]:
        """Context of the dimension at `position`; call it for positions 0, 1, ... in turn."""
        return self.trunk.advance(cache, x, position, condition)

    def dimension_order(self, num_dims: int) -> Int[np.ndarray, "d"]:
        """Flat index into an example of the dimension at each position of the order."""
        return self.trunk.dimension_order(num_dims)
