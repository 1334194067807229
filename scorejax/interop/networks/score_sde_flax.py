# SPDX-License-Identifier: Apache-2.0
"""Weights of the original JAX score-SDE code, whose modules carry automatic names.

Linen counts the modules of each class in the order in which they act, `Conv_0`, `Conv_1`, those
without parameters included. Within a module, names and axes follow from those of the PyTorch port.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from scorejax.interop.networks.score_sde import (
    TENSORS,
    build,
    correspondence,
    load_torch,
    published_sigmas,
    walk,
)
from scorejax.interop.tensors import CONV, LINEAR, POINTWISE, SAME, Turn, require_fit
from scorejax.models.ncsnpp import NCSNpp

_CLASSES = {
    "fourier": "GaussianFourierProjection", "dense": "Dense", "conv": "Conv", "norm": "GroupNorm",
    "combine": "Combine", "attention": "AttnBlockpp", "ddpm": "ResnetBlockDDPMpp",
    "biggan": "ResnetBlockBigGANpp",
}  # fmt: skip
_DDPM_CLASSES = {"attention": "AttnBlock", "ddpm": "ResnetBlockDDPM"}

_HWIO = Turn(lambda a: a.transpose(3, 2, 0, 1), lambda s: (s[2], s[3], s[1], s[0]))
_TURNS = {CONV: _HWIO, POINTWISE: _HWIO, LINEAR: LINEAR, SAME: SAME}
"""Turn of an official PyTorch tensor to ours -> turn of the JAX tensor to the PyTorch one."""


def load_flax(
    architecture: str, tensors: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published network and its variables, from arrays named `Module_0/kernel`.

    `hyper` and the errors raised are those of `load_torch`.
    """
    net = build(architecture, hyper)
    table, names = correspondence(net, hyper), {}
    for official, name, turn in _names(architecture, net, hyper["image_size"]):
        names[official] = (name, turn)
    shapes = {names[k][0]: names[k][1].shape(shape) for k, shape in table.shapes.items()}
    tolerated = {names[k][0] for k in table.tolerated if k in names}
    arrays = {name: np.asarray(array) for name, array in tensors.items()}
    require_fit(architecture, arrays, shapes, tolerated)
    state = {k: names[k][1].tensor(arrays[names[k][0]]) for k in table.shapes}
    return load_torch(architecture, state | {"sigmas": published_sigmas(hyper)}, **hyper)


def _names(architecture: str, net: NCSNpp, image_size: int) -> Iterator[tuple[str, str, Turn]]:
    """Yields (name in the PyTorch port, name in JAX, how its axes turn) of every tensor."""
    classes = _CLASSES | (_DDPM_CLASSES if architecture == "score_sde/ddpm" else {})
    counts: collections.Counter[str] = collections.Counter()
    for index, (layer, kind) in enumerate(walk(net, image_size)):
        if unseen := _resampling_before(layer, kind, net):
            counts[unseen] += 1
        name = classes.get(kind) or ("Downsample" if layer.startswith("down") else "Upsample")
        for tensor, _, turn in TENSORS[kind]:
            path = f"{name}_{counts[name]}/{_tensor(kind, tensor)}"
            yield f"all_modules.{index}.{tensor}", path, _TURNS[turn]
        counts[name] += 1


def _resampling_before(layer: str, kind: str, net: NCSNpp) -> str:
    """The class of the module without parameters that acts on a pyramid before this layer."""
    if kind == "combine":
        return "Downsample"
    coarsest = f"up_{len(net.ch_mult) - 1}_pyramid_norm"
    if net.progressive == "output_skip" and layer.endswith("_pyramid_norm") and layer != coarsest:
        return "Upsample"
    return ""


def _tensor(kind: str, tensor: str) -> str:
    """The name in JAX of a layer's PyTorch tensor."""
    module, _, leaf = tensor.rpartition(".")
    if leaf == "weight" and (kind == "norm" or module.startswith("GroupNorm")):
        leaf = "scale"
    elif leaf == "weight" and not module.startswith("Conv2d"):
        leaf = "kernel"
    return f"{module}/{leaf}" if module else leaf
