# SPDX-License-Identifier: Apache-2.0
"""The training of passes: when each is added, and what the loss of the earlier ones weighs."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from scorejax.choices import require
from scorejax.typing import Array, LossFn, PyTree


@dataclasses.dataclass(frozen=True)
class PassTraining:
    """Options of a config about its `num_passes` passes; older runs lack the last two."""

    num_passes: int
    progressive_passes: tuple[int, ...] = ()
    """Numbers of updates after which the second, third, ... pass is added; () is 0 for all."""
    deep_supervision: float = 0.0
    """Weight of the mean loss of the passes before the last one."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the options that a config has. Raises: ValueError for an impossible value."""
        starts = tuple(config.get("progressive_passes", ()))
        return cls(config["num_passes"], starts, config.get("deep_supervision", 0.0))

    def __post_init__(self) -> None:
        starts = self.progressive_passes
        if starts and (
            len(starts) != self.num_passes - 1 or min(starts) < 0 or sorted(starts) != list(starts)
        ):
            raise ValueError(
                f"progressive_passes needs {self.num_passes - 1} numbers of updates that do not "
                f"fall, one for each pass after the first of num_passes={self.num_passes}, or "
                f"none; got {starts}"
            )
        require(vars(self), ("deep_supervision",), lambda v: 0 <= v < np.inf, "to be at least 0")

    def at(self, step: int) -> int:
        """Passes that the network makes in the update after `step` updates."""
        starts = self.progressive_passes
        return 1 + sum(step >= start for start in starts) if starts else self.num_passes

    def phases(self, loss: LossFn) -> tuple[tuple[int, LossFn], ...]:
        """(step, loss) of each number of passes, from step 0 on, for a loss with that argument."""
        starts = sorted({0, *self.progressive_passes})
        return tuple((start, functools.partial(loss, passes=self.at(start))) for start in starts)

    def supervised(self, losses: list[Array]) -> Array:
        """The loss () of the last pass, and the mean of the earlier ones by its weight."""
        *earlier, last = losses
        if not earlier:
            return last
        return last + self.deep_supervision * jnp.mean(jnp.stack(earlier))

    def trained(self, model_state: PyTree) -> int:
        """Passes of a network whose running statistics are these: those that training has reached.

        Before any training it is all of them.
        """
        if not self.progressive_passes:
            return self.num_passes
        leaves = jax.tree_util.tree_flatten_with_path(model_state)[0]
        counts = {jax.tree_util.keystr(path, simple=True, separator="/"): c for path, c in leaves}
        # Each pass has normalisations of its own, which count the batches that they have seen.
        seen = [n for n in range(self.num_passes) if _any_batch(counts, f"/norm_{n}/count")]
        return 1 + max(seen, default=self.num_passes - 1)


def _any_batch(counts: Mapping[str, Any], ending: str) -> bool:
    return any(np.any(np.asarray(c)) for name, c in counts.items() if name.endswith(ending))
