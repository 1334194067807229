# SPDX-License-Identifier: Apache-2.0
"""Test images that metrics share, and how many of them each metric uses."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from scorejax.choices import require
from scorejax.data.view import ImageView
from scorejax.evaluate.chunks import examples_at_once


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Test images as in training, with one draw of their noise, and how many each metric uses.

    Raises: ValueError for a negative number, or no example for the held-out loss.
    """

    data: ImageView
    batch_size: int
    eval_examples: int
    eval_samples: int
    eval_exact_examples: int = 0
    """Examples for the exact score-matching loss."""
    accumulation: int = 1
    """Parts into which training divides its batch."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any], data: ImageView) -> Self:
        """Reads the options named like its fields; those that are absent keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in options]
        return cls(data, **{name: options[name] for name in names})

    def __post_init__(self) -> None:
        counts = ("eval_samples", "eval_exact_examples")
        require(vars(self), ("eval_examples",), lambda v: v >= 1, "to be at least 1")
        require(vars(self), counts, lambda v: v >= 0, "to be at least 0")

    @property
    def examples_at_once(self) -> int:
        """See `chunks.examples_at_once`."""
        return examples_at_once(self.batch_size, self.accumulation)

    @functools.cached_property
    def all_images(self) -> np.ndarray:
        """All images (n, h, w, c). Raises: as the data set."""
        size = min(self.batch_size, self.eval_examples)
        rng = np.random.default_rng(0)
        batches = self.data.held_out_batches(rng, self.eval_examples, size)
        return np.concatenate([batch["image"][batch["mask"]] for batch in batches])

    def images(self, num: int | None = None) -> np.ndarray:
        """The first `num` images (num, h, w, c), all by default. Raises: as the data set."""
        return self.all_images[:num]
