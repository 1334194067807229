# SPDX-License-Identifier: Apache-2.0
"""Variants of a config: comma-separated words, such as "ve,debug", each of which edits the config.

An axis is a table of alternatives, word -> edit. A variant names at most one word of each axis.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from scorejax.choices import require_known

Edit = Callable[[ConfigDict], ConfigDict]
"""Changes a config in place and returns it."""


def make_edit(**values: Any) -> Edit:
    """An edit that sets the given keys."""

    def edit(config: ConfigDict) -> ConfigDict:
        config.update(values)
        return config

    return edit


unchanged = make_edit()


def choose(variant: str, *axes: Mapping[str, Edit], default: str = "") -> list[Edit]:
    """The edits that a variant names, one per axis; the order of the words does not matter.

    An axis that the variant does not mention takes its word from `default`, else is `unchanged`.
    Raises: ValueError if a word is unknown or an axis is named twice.
    """
    words = [word for word in variant.split(",") if word]
    for word in words:
        require_known("variant", word, [known for axis in axes for known in axis])
    edits = []
    for axis in axes:
        named = [word for word in axis if word in words]
        if len(named) > 1:
            one_of = ", ".join(axis)
            raise ValueError(
                f"the variant {variant!r} names {' and '.join(named)}; choose one of {one_of}"
            )
        fallback = [word for word in axis if word in default.split(",")]
        edits.append(axis[word] if (word := next(iter(named or fallback), None)) else unchanged)
    return edits


def apply(config: ConfigDict, variant: str, *axes: Mapping[str, Edit]) -> ConfigDict:
    """Edits a config as the variant says, in the order of the axes. Raises: as `choose`."""
    for edit in choose(variant, *axes):
        config = edit(config)
    return config
