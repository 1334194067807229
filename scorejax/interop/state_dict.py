# SPDX-License-Identifier: Apache-2.0
"""State dictionaries of published PyTorch networks, of every family."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from scorejax.choices import choose
from scorejax.interop import edm, refinenet_weights, torch_weights

_FAMILIES = {
    name: module
    for module in (torch_weights, refinenet_weights, edm)
    for name in module.ARCHITECTURES
}


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published network and its variables, from the official state dictionary.

    `hyper` holds the official settings under their official names. Images go in and out as (b, h,
    w, c), else the module computes what the official network does.

    Raises: ValueError for an unknown architecture or setting, and for tensors that are missing,
    surplus or misshapen.
    """
    family = choose("architecture", architecture, _FAMILIES)
    return family.load_torch(architecture, state_dict, **hyper)
