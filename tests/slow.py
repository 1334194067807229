# SPDX-License-Identifier: Apache-2.0
"""Parameters of tests that are left to the slow suite, since others repeat what they show."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_where(is_slow: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """All values as parameters; those for which `is_slow` holds are marked slow."""
    marks = lambda value: [pytest.mark.slow] if is_slow(value) else []
    return [pytest.param(value, marks=marks(value)) for value in values]


def slow_subvp(sdes: Iterable[Any]) -> list[Any]:
    """All SDEs, or names of SDEs; sub-VP, which differs from VP in its marginals alone, is slow."""
    return slow_where(lambda sde: getattr(sde, "name", sde) == "subvp", sdes)


SINGLE_AND_DOUBLE = slow_where(lambda name: name == "float32", ["float32", "float64"])
"""Precisions in which golden numbers are compared. Double precision holds the formulas to 1e-8 and
more. Single precision, with the tolerances of the golden files, holds how they round; it repeats
each test and compiles it again."""
