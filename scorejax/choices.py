# SPDX-License-Identifier: Apache-2.0
"""One-line errors for unknown names and invalid values, with a suggestion where possible."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, choices: Iterable[str]) -> ValueError:
    """Error for an unknown name of a `kind` ("sampler", say); suggests the nearest choice."""
    choices = sorted(choices)
    nearest = difflib.get_close_matches(str(name).lower(), choices, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(choices)}")


def require_known(kind: str, name: object, choices: Collection[str]) -> None:
    """Raises ValueError, as `unknown`, unless the name is among the choices."""
    if name not in choices:
        raise unknown(kind, name, choices)


def choose(kind: str, name: object, table: Mapping[str, T]) -> T:
    """Returns table[name]. Raises: ValueError, as `unknown`, if the table has no such name."""
    require_known(kind, name, table)
    return table[name]


def require(
    values: Mapping[str, Any], names: Iterable[str], holds: Callable[[Any], bool], needs: str
) -> None:
    """Raises ValueError for the first named value for which `holds` is false.

    `needs` completes the message "<name> needs <needs>; got <value>".
    """
    for name in names:
        if not holds(values[name]):
            raise ValueError(f"{name} needs {needs}; got {values[name]!r}")


def require_keys(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError naming the keys that are missing."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}")
