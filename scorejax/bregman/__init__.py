# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours under Bregman divergences: in memory, on accelerators and on disk.

`build_index` and `search` choose between the scan of points in memory (`exact`) and BrePartition's
index (`brepartition`), which may be on disk. The names below are imported when first used.
"""

import importlib

_HOME = {
    "Divergence": "scorejax.bregman.divergences",
    "get": "scorejax.bregman.divergences",
    "from_convex": "scorejax.bregman.convex",
    "Interval": "scorejax.bregman.domain",
    "Neighbours": "scorejax.bregman.ranking",
    "ExactIndex": "scorejax.bregman.exact",
    "BregmanIndex": "scorejax.bregman.index",
    "build_index": "scorejax.bregman.engines",
    "search": "scorejax.bregman.engines",
    "range_search": "scorejax.bregman.brepartition",
    "calibrate": "scorejax.bregman.brepartition",
    "Calibration": "scorejax.bregman.approximate",
    "open_index": "scorejax.bregman.store",
    "BregmanNeighbors": "scorejax.bregman.neighbors",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scorejax.bregman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
