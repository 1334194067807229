# SPDX-License-Identifier: Apache-2.0
"""The contract of encoders: sentences to vectors."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32


class SentenceEncoder(Protocol):
    """Maps each sentence to a vector that depends on that sentence alone."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def checksum(self) -> str:
        """Hexadecimal digest of all that the vectors depend on, weights and settings."""

    def encode(self, sentences: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """The vectors of n sentences."""
