# SPDX-License-Identifier: Apache-2.0
"""State dictionaries of published PyTorch networks, of every family."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from scorejax.choices import choose
from scorejax.interop import (
    bionet_weights,
    edm,
    refinenet_weights,
    torch_export,
    torch_weights,
)

_FAMILIES = {
    name: module
    for module in (torch_weights, refinenet_weights, edm, bionet_weights)
    for name in module.ARCHITECTURES
}
_EXPORTERS = _FAMILIES | dict.fromkeys(torch_weights.ARCHITECTURES, torch_export)


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


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors by name: `load_torch` undone, exactly.

    `variables` are those of the module that `load_torch` returns for the same settings. Those of
    the score-SDE code and of BiO-Net are in the official order.

    Raises: ValueError for an unknown architecture or setting, and for parameters that are missing,
    surplus or misshapen.
    """
    exporter = choose("architecture", architecture, _EXPORTERS)
    return exporter.export_torch(architecture, variables, **hyper)
