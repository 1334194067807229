# SPDX-License-Identifier: Apache-2.0
"""Families of published networks: their settings, and their tensors matched with our parameters."""
