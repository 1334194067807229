# SPDX-License-Identifier: Apache-2.0
"""Nearest neighbours under Bregman divergences: in memory, on accelerators and on disk.

A query runs through the modules from top to bottom:

1. `engines` is the door: `build_index`, `search` and `range_search` choose the scan of all points
   in memory, or BrePartition's index, which may be on disk. `neighbors` is scikit-learn's door.
2. `divergences` holds what both engines know of a divergence: its domain, stable formulas, order
   of arguments, and the two ways to bound it (`three_point`, `cauchy`).
3. `scan.exact` answers in memory: scores in single precision by a matrix product
   (`block_scan`), then candidates in double precision (`ranking`).
4. `index.brepartition` answers from an index: bounds of leaves (`ball_tree`), candidates
   (`filters`), rows from pages (`pages`), or a scan of all rows (`row_scan`) where `planning`
   expects that to be sooner.

`scan` imports `divergences`, and `index` both. `index_files` takes an index from files to files.
The names below are imported on first use.
"""

import importlib

from scorejax.bregman import former_names

_HOME = {
    "Divergence": "scorejax.bregman.divergences",
    "get": "scorejax.bregman.divergences",
    "from_convex": "scorejax.bregman.divergences.convex",
    "Interval": "scorejax.bregman.divergences.domain",
    "Neighbours": "scorejax.bregman.scan.ranking",
    "ExactIndex": "scorejax.bregman.scan.exact",
    "BregmanIndex": "scorejax.bregman.index",
    "build_index": "scorejax.bregman.engines",
    "search": "scorejax.bregman.engines",
    "range_search": "scorejax.bregman.engines",
    "calibrate": "scorejax.bregman.index.brepartition",
    "Calibration": "scorejax.bregman.index.approximate",
    "open_index": "scorejax.bregman.index.store",
    "BregmanNeighbors": "scorejax.bregman.neighbors",
}

__all__ = [*_HOME]

former_names.install(__name__)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'scorejax.bregman' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
