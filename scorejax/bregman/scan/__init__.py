# SPDX-License-Identifier: Apache-2.0
"""Exact search by scanning all points in memory.

`exact` builds and searches: `block_scan` scores blocks of points on the devices in single
precision, `ranking` ranks the few candidates by the divergence itself in double precision.
"""
