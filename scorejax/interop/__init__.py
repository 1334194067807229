# SPDX-License-Identifier: Apache-2.0
"""Published weights, loaded into our networks, and ours written for the published ones."""

from scorejax.interop.checkpoint_files import read_checkpoint
from scorejax.interop.published import load_checkpoint
from scorejax.interop.state_dict import export_torch, load_torch

__all__ = ["export_torch", "load_checkpoint", "load_torch", "read_checkpoint"]
