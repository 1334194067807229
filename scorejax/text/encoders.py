# SPDX-License-Identifier: Apache-2.0
"""The contract of encoders: sentences to vectors."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32


class SentenceEncoder(Protocol):
    """Maps each sentence to a vector of `dim` numbers that depends on that sentence alone.

    `checksum` is a hexadecimal digest of all that the vectors depend on, weights and settings.
    """

    @property
    def dim(self) -> int: ...

    @property
    def checksum(self) -> str: ...

    def encode(self, sentences: Sequence[str]) -> Float32[np.ndarray, "n dim"]: ...
