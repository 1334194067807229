# SPDX-License-Identifier: Apache-2.0
"""Readers of weight files: each format is data, and nothing in a file is executed."""
