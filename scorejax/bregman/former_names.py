# SPDX-License-Identifier: Apache-2.0
"""Module names of release 0.1.0, under which its pickles name functions and classes.

An index folder stores no module names. A pickle of an index, a calibration or an estimator does, so
that each former name stays importable and stands for the module that took its place.
"""

import importlib
import sys
import types

NOW = {
    "approximate": "index.approximate",
    "ball_tree": "index.ball_tree",
    "block_scan": "scan.block_scan",
    "brepartition": "index.brepartition",
    "cauchy": "divergences.cauchy",
    "convex": "divergences.convex",
    "domain": "divergences.domain",
    "exact": "scan.exact",
    "filters": "index.filters",
    "generators": "divergences.generators",
    "pages": "index.pages",
    "partition": "index.partition",
    "planning": "index.planning",
    "ranking": "scan.ranking",
    "row_scan": "index.row_scan",
    "sided": "divergences.sided",
    "store": "index.store",
    "three_point": "divergences.three_point",
    "tree_building": "index.tree_building",
}
"""Former module of `scorejax.bregman` -> its present place there."""


class _Former(types.ModuleType):
    """Looks a name up in the present module, which is imported then."""

    def __init__(self, name: str, present: str) -> None:
        super().__init__(name, f"Former name of {present}.")
        self._present = present

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # Tools that list modules ask for these; none is worth an import.
            raise AttributeError(name)
        return getattr(importlib.import_module(self._present), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):  # the import system's own, and `_present`
            super().__setattr__(name, value)
        else:
            setattr(importlib.import_module(self._present), name, value)


def install(package: str) -> None:
    """Makes the former names importable as modules of the package."""
    for former, present in NOW.items():
        name = f"{package}.{former}"
        module = sys.modules.setdefault(name, _Former(name, f"{package}.{present}"))
        setattr(sys.modules[package], former, module)
