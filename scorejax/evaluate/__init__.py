# SPDX-License-Identifier: Apache-2.0
"""Metrics and pictures of samples, densities and segmentations."""
