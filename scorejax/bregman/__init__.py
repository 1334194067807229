# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours under Bregman divergences: in memory, on accelerators and on disk.

`build_index` and `search` are the engine to use in memory. The names below are imported when first
used.
"""

import importlib

_HOME = {
    "Divergence": "scorejax.bregman.divergences",
    "get": "scorejax.bregman.divergences",
    "from_convex": "scorejax.bregman.convex",
    "Interval": "scorejax.bregman.domain",
    "Neighbours": "scorejax.bregman.ranking",
    "ExactIndex": "scorejax.bregman.exact",
    "build_index": "scorejax.bregman.exact",
    "search": "scorejax.bregman.exact",
    "BregmanNeighbors": "scorejax.bregman.neighbors",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scorejax.bregman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
