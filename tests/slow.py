# SPDX-License-Identifier: Apache-2.0
"""Parameters of tests that are left to the slow or the deep suite: others show nearly the same."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def marked_where(
    mark: pytest.MarkDecorator, holds: Callable[[Any], bool], values: Iterable[Any]
) -> list[Any]:
    """All values as parameters; those for which `holds` is true are marked."""
    return [pytest.param(value, marks=[mark] if holds(value) else []) for value in values]


def slow_where(is_slow: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """All values as parameters; those for which `is_slow` holds are marked slow."""
    return marked_where(pytest.mark.slow, is_slow, values)


def deep_where(is_deep: Callable[[Any], bool], values: Iterable[Any]) -> list[Any]:
    """All values as parameters; those for which `is_deep` holds are marked deep."""
    return marked_where(pytest.mark.deep, is_deep, values)


def slow_subvp(sdes: Iterable[Any]) -> list[Any]:
    """All SDEs, or names of SDEs; sub-VP, which differs from VP in its marginals alone, is slow."""
    return slow_where(lambda sde: getattr(sde, "name", sde) == "subvp", sdes)


SINGLE_AND_DOUBLE = slow_where(lambda name: name == "float32", ["float32", "float64"])
"""Precisions in which golden numbers are compared. Double precision holds the formulas to 1e-8 and
more. Single precision, with the tolerances of the golden files, holds how they round; it repeats
each test and compiles it again."""
