# SPDX-License-Identifier: Apache-2.0
"""Data sets, and the batch sources that training draws from."""
