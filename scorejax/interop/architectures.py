# SPDX-License-Identifier: Apache-2.0
"""The published architectures by name: their tensors, loaded, and those of PyTorch written."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from scorejax.choices import choose
from scorejax.interop.networks import (
    bionet,
    edm,
    huggingface,
    recovery_likelihood,
    refinenet,
    score_sde,
)

FAMILIES = {
    name: family
    for family in (score_sde, refinenet, edm, bionet, huggingface)
    for name in family.ARCHITECTURES
}
"""Architecture in PyTorch -> module of `networks` that knows its tensors and settings."""

TENSORFLOW_FAMILIES = dict.fromkeys(recovery_likelihood.ARCHITECTURES, recovery_likelihood)
"""Architecture in TensorFlow -> module of `networks` that knows its tensors and settings."""


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published network and its variables, from the official state dictionary.

    `hyper` holds the official settings under their official names. The module computes what the
    official network does, with images as (b, h, w, c); BERT takes token ids.

    Raises: ValueError for an unknown architecture or setting, and for tensors that are missing,
    surplus or misshapen.
    """
    family = choose("architecture", architecture, FAMILIES)
    return family.load_torch(architecture, state_dict, **hyper)


def load_tensorflow(
    architecture: str, arrays: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published network and its variables, from the official arrays by name.

    `hyper` and the errors raised are those of `load_torch`.
    """
    family = choose("architecture", architecture, TENSORFLOW_FAMILIES)
    return family.load_tensorflow(architecture, arrays, **hyper)


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors by name: `load_torch` undone, exactly.

    `variables` are those of the module that `load_torch` returns for the same settings. Tensors of
    the score-SDE code and of BiO-Net come in the official order.

    Raises: ValueError for an unknown architecture or setting, and for parameters that are missing,
    surplus or misshapen.
    """
    family = choose("architecture", architecture, FAMILIES)
    return family.export_torch(architecture, variables, **hyper)
