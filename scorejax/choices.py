# SPDX-License-Identifier: Apache-2.0
"""One line for a name that is not known or a value that cannot be: what it was, what would do."""

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a `name` that is none of the `known` ones; `kind` says of what."""
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


def require_known(kind: str, name: object, known: Collection[str]) -> None:
    """Raises ValueError, as `unknown`, unless the name is among the known ones."""
    if name not in known:
        raise unknown(kind, name, known)


def choose(kind: str, name: object, table: Mapping[str, T]) -> T:
    """table[name]. Raises: ValueError, as `unknown`, if it is not there."""
    require_known(kind, name, table)
    return table[name]


def require(
    values: Mapping[str, Any], names: Iterable[str], holds: Callable[[Any], bool], needs: str
) -> None:
    """Raises ValueError for the first of the named values that is not as it `needs` to be."""
    for name in names:
        if not holds(values[name]):
            raise ValueError(f"{name} needs {needs}; got {values[name]!r}")


def require_keys(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError naming the keys that are missing."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}")
