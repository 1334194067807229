# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning on the device: environments, replay memory, rollouts, closed forms."""
