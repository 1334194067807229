# SPDX-License-Identifier: Apache-2.0
"""One-line errors for unknown names and invalid values, with a suggestion where possible."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: object, choices: Iterable[str]) -> ValueError:
    """Error for an unknown name of a `kind` ("sampler", say); makes a `suggestion`."""
    choices = sorted(choices)
    hint = suggestion(str(name), choices, cutoff=0.5)
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(choices)}")


def suggestion(name: str, choices: Iterable[str], *, cutoff: float) -> str:
    """Asks "did you mean ...? ", for the choices that the name may stand for; "" without any.

    These are the choices that have all the words of the name, "generalized_kl" for "kl", or else
    the most similar one, if its similarity is at least `cutoff` (in [0, 1]).
    """
    words, choices = _words(name), sorted(choices)
    meant = [choice for choice in choices if words and words <= _words(choice)][:3]
    meant = meant or difflib.get_close_matches(name.lower(), choices, n=1, cutoff=cutoff)
    return f"did you mean {' or '.join(map(repr, meant))}? " if meant else ""


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))


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
