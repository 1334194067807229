# SPDX-License-Identifier: Apache-2.0
"""The level of false alarms that a calibration set can promise, over all scores and groups."""

import dataclasses
import math
import warnings
from collections.abc import Collection, Mapping

from scorejax.density.hypothesis import conformal


@dataclasses.dataclass(frozen=True)
class Promise:
    """At most a share `alpha` of false alarms by all scores together, inside each group.

    With `delta` None on average over calibration sets, else in all groups at once, except with
    probability delta. Scores share both by Bonferroni's inequality.
    """

    alpha: float
    delta: float | None
    num_scores: int
    num_groups: int

    @property
    def share(self) -> float | None:
        """The delta of one score in one group."""
        return None if self.delta is None else self.delta / (self.num_scores * self.num_groups)

    def rank(self, size: int) -> int:
        """Rank, among `size` calibration scores, up to which each of the scores flags a row."""
        level = self.alpha / self.num_scores
        if self.share is None:
            return conformal.marginal_rank(size, level)
        return conformal.training_conditional_rank(size, level, delta=self.share)

    def warn(self, sizes: Mapping[int, int], groups: Collection[int]) -> None:
        """Warns if the smallest group has too few calibration rows, or one of `groups` has none."""
        missing = [str(group) for group in groups if group not in sizes]
        if missing:
            warnings.warn(
                f"no calibration row is predicted to be of class {', '.join(missing)}: new rows "
                "that are will be refused",
                stacklevel=4,
            )
        size = min(sizes.values())
        promised = self.num_scores * conformal.smallest_alpha(size, delta=self.share)
        if promised > self.alpha:
            needed = conformal.calibration_size(self.alpha / self.num_scores, delta=self.share)
            rows = "rows of each class" if len(groups) > 1 else "rows"
            warnings.warn(
                f"alpha={self.alpha:g} by {self.num_scores} scores needs {needed:.15g} calibration "
                f"{rows}; {size} can promise alpha={math.ceil(1e4 * promised) / 1e4:g} at best, "
                "and flag nothing below it",
                stacklevel=4,
            )
