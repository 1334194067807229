# SPDX-License-Identifier: Apache-2.0
"""BrePartition: an index of trees over parts of the coordinates, in memory or on disk.

`brepartition` builds and searches a `bregman_index.BregmanIndex`. To build: `partition` cuts the
coordinates into parts, `tree_building` makes a tree for each, `pages` lays out the rows, `planning`
chooses what is best measured, `store` writes a folder. To search: `planning` chooses a filter or
`row_scan`; `filters` finds candidates by the bounds of `ball_tree`; `approximate` stops early.
"""

from scorejax.bregman.index.bregman_index import BregmanIndex, Shares

__all__ = ["BregmanIndex", "Shares"]
