# SPDX-License-Identifier: Apache-2.0
"""Grey levels of images as numbers of a model: their values, and the bounds between them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scorejax.data.view import ImageView


@dataclasses.dataclass(frozen=True)
class GreyLevels:
    """`num` levels 0, 1, ... at equal distances from `low` to `high`, as undequantised images."""

    num: int
    low: float
    high: float

    @classmethod
    def of(cls, view: ImageView) -> "GreyLevels":
        """The grey levels of a data set."""
        return cls(view.levels, *view.data_range)

    @property
    def spacing(self) -> float:
        """Distance of neighbouring levels."""
        return (self.high - self.low) / (self.num - 1)

    @property
    def bounds(self) -> Float[np.ndarray, "num-1"]:
        """The middles between neighbouring levels."""
        return self.low + self.spacing * (np.arange(self.num - 1) + 0.5)

    def value(self, level: Int[Array, "*d"]) -> Float[Array, "*d"]:
        """The value of a level."""
        return self.low + self.spacing * level.astype(jnp.result_type(float))

    def index(self, x: Float[Array, "*d"]) -> Int[Array, "*d"]:
        """The level whose value is nearest to x."""
        return self._clipped(jnp.round((x - self.low) / self.spacing)).astype(jnp.int32)

    def nearest(self, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
        """The value of the level that is nearest to x; NaN stays NaN."""
        return self.low + self.spacing * self._clipped(jnp.round((x - self.low) / self.spacing))

    def undequantized(self, x: Float[Array, "*d"]) -> Float[Array, "*d"]:
        """The value of the level k whose uniform draws lie in the k-th of `num` equal parts of
        [low, high); NaN stays NaN."""
        level = jnp.floor((x - self.low) / (self.high - self.low) * self.num)
        return self.low + self.spacing * self._clipped(level)

    def _clipped(self, level: Float[Array, "*d"]) -> Float[Array, "*d"]:
        return jnp.clip(level, 0, self.num - 1)
