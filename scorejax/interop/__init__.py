# SPDX-License-Identifier: Apache-2.0
"""Published weights, loaded into our networks, and ours written for the published ones.

`readers` say what a file is: `readers.checkpoint.read_checkpoint` recognises its format and returns
arrays by name. `networks` say whose tensors they are: one module for each family matches official
names with our parameters. `tensors` checks and applies such matches. `architectures` picks the
family by name, and `published` goes from a file to a network.
"""

from scorejax.interop.architectures import export_torch, load_tensorflow, load_torch
from scorejax.interop.published import load_checkpoint
from scorejax.interop.readers.checkpoint import read_checkpoint

__all__ = ["export_torch", "load_checkpoint", "load_tensorflow", "load_torch", "read_checkpoint"]
