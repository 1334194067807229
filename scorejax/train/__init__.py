# SPDX-License-Identifier: Apache-2.0
"""One training loop for every system: state, step, devices, checkpoints, logs."""
