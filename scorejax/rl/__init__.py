# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning: environments, what they are remembered by, and exact solutions."""
