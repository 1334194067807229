# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours under Bregman divergences: in memory, on accelerators and on disk."""
