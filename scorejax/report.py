# SPDX-License-Identifier: Apache-2.0
"""What an evaluation hands back: numbers for the log and pictures for the eye."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Scalars by name, and pictures by name as uint8 arrays (height, width, 3)."""

    scalars: dict[str, float]
    pictures: dict[str, np.ndarray]


def json_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with None for what is not finite: JSON has no word for NaN or infinity."""
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    return {name: value if finite(value) else None for name, value in report.items()}
