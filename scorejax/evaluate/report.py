# SPDX-License-Identifier: Apache-2.0
"""What an evaluation hands back: numbers for the log and pictures for the eye."""

from typing import NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Scalars by name, and pictures by name as uint8 arrays (height, width, 3)."""

    scalars: dict[str, float]
    pictures: dict[str, np.ndarray]
