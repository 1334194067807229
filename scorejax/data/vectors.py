# SPDX-License-Identifier: Apache-2.0
"""Vectors (d,) as a model sees them: rows of arrays in memory."""

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from scorejax.choices import choose
from scorejax.data.source import array_source, padded_rows
from scorejax.typing import OfflineSource, Shape


@dataclasses.dataclass(frozen=True, eq=False)
class VectorView:
    """Training and test rows (n, d) in the units of the model, kept as float32.

    Raises: ValueError unless both have rows of one length.
    """

    train: np.ndarray
    test: np.ndarray
    field: ClassVar[str] = "x"
    paths: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        train, test = np.shape(self.train), np.shape(self.test)
        if len(train) != 2 or len(test) != 2 or train[1] != test[1] or not train[0] * test[0]:
            raise ValueError(
                f"VectorView needs rows (n, d) of one length d, n >= 1; got {train} and {test}"
            )
        for split in ("train", "test"):
            rows = getattr(self, split)
            if not np.isrealobj(rows) or not np.isfinite(rows).all():
                raise ValueError(f"VectorView needs finite real numbers; {split} has others")
            object.__setattr__(self, split, np.asarray(getattr(self, split), np.float32))

    @property
    def shape(self) -> Shape:
        """(d,)."""
        return self.train.shape[1:]

    def training_source(self, batch_size: int) -> OfflineSource:
        """Batches {"x": (b, d)} of training rows; each epoch is shuffled anew."""
        return array_source({self.field: self.train}, batch_size)

    def held_out_batches(
        self, rng: np.random.Generator, num: int, batch_size: int
    ) -> list[dict[str, np.ndarray]]:
        """The first `num` test rows, padded to batches of one size and masked."""
        del rng  # Nothing is added to the rows.
        return list(padded_rows({self.field: self.test[:num]}, batch_size))

    def density_examples(
        self, rng: np.random.Generator, num: int | None, split: str = "test"
    ) -> Float[np.ndarray, "b d"]:
        """The first `num` rows of a split, all if it is None. Raises: ValueError for no split."""
        del rng
        return choose("split", split, self.splits)[:num]

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows by the name of their split."""
        return {"train": self.train, "test": self.test}

    def to_data(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The rows as they are."""
        return x
