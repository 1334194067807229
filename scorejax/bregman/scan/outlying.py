# SPDX-License-Identifier: Apache-2.0
"""Rows that are much larger than all others, which a scan in common units does without.

The bound on rounding is in units of the largest row. One outlier would make it as large as the
distances of all others, and so each of them a candidate. A few such rows are left out of the scan,
and ranked in double precision for every query instead.
"""

import numpy as np
from jaxtyping import Float, Int

MOST = 128
"""Most rows that are outlying by one size: ranking all of them costs as much as a few scans."""
FAR = 4.0
"""An outlying row is so many times larger than the largest of those that are not."""
RANKED_BY = 2
"""Rows are outlying by the first two sizes: by length or by height."""
KEPT = RANKED_BY * MOST + 1


class LargestRows:
    """The rows of largest size among those added so far, for each of several sizes."""

    def __init__(self, num_sizes: int) -> None:
        self._sizes = np.full((num_sizes, 0), -np.inf)
        self._rows = np.zeros((num_sizes, 0), np.int64)

    def add(self, sizes: Float[np.ndarray, "s b"], first_row: int) -> None:
        """Adds rows, numbered from `first_row` on."""
        rows = np.broadcast_to(first_row + np.arange(sizes.shape[1]), sizes.shape)
        sizes = np.concatenate([self._sizes, sizes], axis=1)
        rows = np.concatenate([self._rows, rows], axis=1)
        if sizes.shape[1] > KEPT:
            kept = np.argpartition(-sizes, KEPT - 1, axis=1)[:, :KEPT]
            sizes, rows = (np.take_along_axis(a, kept, axis=1) for a in (sizes, rows))
        self._sizes, self._rows = sizes, rows

    def outlying(self) -> Int[np.ndarray, "o"]:
        """The outlying rows in ascending order, at most `MOST` by each of the first two sizes.

        A row is outlying if it is `FAR` times larger than the (MOST + 1)-th largest row.
        """
        if self._sizes.shape[1] <= MOST:
            return np.zeros(0, np.int64)
        first = self._sizes[:RANKED_BY]
        usual = -np.partition(-first, MOST, axis=1)[:, MOST, None]
        outlying = first > FAR * usual
        return np.unique(self._rows[:RANKED_BY][outlying])

    def largest(self, *, without: Int[np.ndarray, "o"]) -> Float[np.ndarray, "s"]:
        """The largest of each size among the rows that are not left out; 0 if there is none."""
        left = np.where(np.isin(self._rows, without), 0.0, self._sizes)
        return np.max(left, axis=1, initial=0.0)
