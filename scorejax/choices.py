# SPDX-License-Identifier: Apache-2.0
"""One line for a name that is not known: what it was, what is nearest, what there is."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a `name` that is none of the `known` ones; `kind` says of what."""
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")
