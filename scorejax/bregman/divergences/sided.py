# SPDX-License-Identifier: Apache-2.0
"""A Bregman divergence with a fixed order of arguments: point and query, or query and point.

D(x, q) of a point x and a query q is potential(x) + copotential(q) - <affine(x), slope(q)>. The
order "query_first" exchanges the roles of a coordinate and its gradient, since D_f(q, x) =
D_f*(phi'(x), phi'(q)). The bounds of the index are written once, in these terms. All functions work
in float64 NumPy, elementwise, on `divergence.coordinates`.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from scorejax.bregman.divergences.divergence import SIDES, Divergence, row_sums
from scorejax.choices import require_known

Coordinates = Float[np.ndarray, "*n p"]
Broadcast = Float[np.ndarray, "*#n p"]
Distances = Float[np.ndarray | np.float64, "*#n"]


@dataclasses.dataclass(frozen=True)
class Sided:
    """A divergence and the order of its arguments. Raises: ValueError for an unknown side."""

    divergence: Divergence
    side: str = "data_first"

    def __post_init__(self):
        require_known("side", self.side, SIDES)

    @property
    def data_first(self) -> bool:
        """Whether the point is the first argument."""
        return self.side == "data_first"

    def pointwise(self, x: Broadcast, q: Broadcast) -> Broadcast:
        """The divergence of each coordinate of points x from queries q."""
        first, second = (x, q) if self.data_first else (q, x)
        return self.divergence.pointwise(first, second)

    def distances(self, x: Broadcast, q: Broadcast) -> Distances:
        """Divergences of rows x from queries q, in the direct form, exact also for small ones.

        They are infinite where numbers overflow to NaN, so that points can be sorted.
        """
        return row_sums(self.pointwise(np.asarray(x, np.float64), q))

    def affine(self, x: Coordinates) -> Coordinates:
        """Point coordinates: one factor of the inner product; in them, centroids are means."""
        return x if self.data_first else self.divergence.gradient(x)

    def from_affine(self, u: Coordinates) -> Coordinates:
        """The inverse of `affine`."""
        return u if self.data_first else self.divergence.inverse_gradient(u)

    def slope(self, q: Coordinates) -> Coordinates:
        """Query coordinates: the other factor of the inner product."""
        return self.divergence.gradient(q) if self.data_first else q

    def from_slope(self, s: Coordinates) -> Coordinates:
        """The inverse of `slope`."""
        return self.divergence.inverse_gradient(s) if self.data_first else s

    def potential(self, x: Coordinates) -> Coordinates:
        """The term that depends on the point alone."""
        return self.divergence.phi(x) if self.data_first else self._conjugate(x)

    def copotential(self, q: Coordinates) -> Coordinates:
        """The term that depends on the query alone."""
        return self._conjugate(q) if self.data_first else self.divergence.phi(q)

    def _conjugate(self, x: Coordinates) -> Coordinates:
        # x phi'(x) tends to zero at x = 0, where the slope may be infinite.
        return np.where(x == 0, 0.0, x * self.divergence.gradient(x)) - self.divergence.phi(x)
