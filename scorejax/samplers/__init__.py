# SPDX-License-Identifier: Apache-2.0
"""Samplers: functions of (rng, score_fn, shape) that turn a score into samples."""
