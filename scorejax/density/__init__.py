# SPDX-License-Identifier: Apache-2.0
"""Densities that are learned without their normaliser, and estimates of the normaliser."""
