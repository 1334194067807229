# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the sources that training draws its batches from."""
