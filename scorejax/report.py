# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: scalars and pictures."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Evaluation(NamedTuple):
    """Scalars by name, and pictures by name as uint8 arrays (height, width, 3)."""

    scalars: dict[str, float]
    pictures: dict[str, np.ndarray]


def json_values(report: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces non-finite floats by None, since JSON has no NaN or infinity."""
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    return {name: value if finite(value) else None for name, value in report.items()}
