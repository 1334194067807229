# SPDX-License-Identifier: Apache-2.0
"""From a published checkpoint to a network of ours: which of its weights, and whether they fit."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from scorejax.choices import choose
from scorejax.interop import bionet_weights, edm, refinenet_weights, torch_weights
from scorejax.interop.checkpoint_files import Checkpoint, StateDict, read_checkpoint
from scorejax.interop.flax_weights import load_flax
from scorejax.interop.state_dict import load_torch
from scorejax.models.layers import group_count
from scorejax.models.ncsnpp import NCSNpp

# The architectures of which runs can be made, and who knows their settings.
_IMPORTABLE = {
    name: family
    for family in (torch_weights, refinenet_weights, edm, bionet_weights)
    for name in family.ARCHITECTURES
    if name != "edm/dhariwal_unet"  # of which there is no system
}
_LOADERS = {"torch": load_torch, "flax": load_flax}
# What changes neither the parameters nor, in evaluation, what is computed with them.
_FREE_FIELDS = ("dtype", "remat", "dropout", "init_scale", "fourier_scale", "num_groups")
_CLASSES = {
    "edm/song_unet": "SongUNet", "edm/dhariwal_unet": "DhariwalUNet", "bionet/bionet": "BiONet",
}  # fmt: skip


def load_checkpoint(
    architecture: str, path: str | os.PathLike, *, averaged: bool = True, **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module and the variables of a published file; settings and errors as of `load_torch`.

    Takes the moving average of the weights, which all published results are from, or with
    `averaged=False` the raw ones. Settings that the file itself states need not be given.
    Nothing in the file is executed.

    Raises: FileNotFoundError, and ValueError with one line for a file that is damaged or hostile,
    that lacks the weights asked for, or whose tensors are not those of the architecture.
    """
    checkpoint = read_checkpoint(path)
    stated = _stated(architecture, checkpoint, hyper)
    return _load(architecture, checkpoint, checkpoint.weights(averaged=averaged), stated | hyper)


class Imported(NamedTuple):
    """Of a network: its parameters as they were trained, their average, and what is not trained.

    Where the file has one kind of parameters only, it is both.
    """

    params: dict
    averaged: dict
    model_state: dict


def variables_for(
    network: nn.Module, architecture: str, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> Imported:
    """The weights in a file for `network`, which `config` describes; without a division by sigma.

    Raises: ValueError with one line if the network or the tensors are others.
    """
    family = choose("architecture", architecture, _IMPORTABLE)
    if architecture in _CLASSES:  # whose settings are in no other config
        _require_same_class(architecture, _CLASSES[architecture], network)
    if family is bionet_weights:
        channels = config["num_channels"]
        load = lambda weights: _load(
            architecture,
            checkpoint,
            weights,
            bionet_weights.settings_for(network, weights, num_channels=channels),
        )[1]
    else:
        hyper = family.settings_of(config, checkpoint.settings)
        hyper = _stated(architecture, checkpoint, hyper) | hyper
        require_same_network(architecture, family.build(architecture, hyper), network)
        load = lambda weights: _load(architecture, checkpoint, weights, hyper)[1]
    given = [weights for weights in (checkpoint.raw, checkpoint.averaged) if weights is not None]
    found = [load(weights) for weights in given]
    params = [variables.pop("params") for variables in found]
    undivided = [of_model.get("network", of_model) for of_model in params]
    # The levels of a published division by sigma are the config's.
    model_state = {name: part for name, part in found[-1].items() if name != "constants"}
    return Imported(undivided[0], undivided[-1], model_state)


def require_same_network(architecture: str, published: nn.Module, network: nn.Module) -> None:
    """Raises ValueError naming the first setting in which two networks contradict each other."""
    _require_same_class(architecture, type(published).__name__, network)
    for field in dataclasses.fields(network):
        if field.name in ("parent", "name", *_FREE_FIELDS):
            continue
        theirs, ours = getattr(published, field.name), getattr(network, field.name)
        if theirs == ours:
            continue
        if field.name == "stages":
            theirs, ours = len(theirs), len(ours)
        raise ValueError(f"{architecture} has {field.name}={theirs!r}; the config has {ours!r}")
    if isinstance(network, NCSNpp):
        _require_same_groups(architecture, published, network)


def _require_same_class(architecture: str, published: str, network: nn.Module) -> None:
    ours = type(network).__name__
    if published != ours:
        raise ValueError(f"{architecture} is of class {published}; the config's is {ours}")


def _require_same_groups(architecture: str, published: NCSNpp, network: NCSNpp) -> None:
    smallest = network.nf * min(network.ch_mult)
    groups = [n or group_count(smallest) for n in (published.num_groups, network.num_groups)]
    if groups[0] != groups[1]:
        raise ValueError(
            f"{architecture} normalises {groups[0]} groups of channels, the config's network has "
            f"{groups[1]} where there are {smallest} channels; they agree from 128 on"
        )


def _load(
    architecture: str, checkpoint: Checkpoint, weights: StateDict, hyper: Mapping[str, Any]
) -> tuple[nn.Module, dict]:
    return _LOADERS[checkpoint.layout](architecture, weights, **hyper)


def _stated(architecture: str, checkpoint: Checkpoint, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the file. Raises: ValueError if it holds another class or other settings."""
    if not checkpoint.settings:
        return {}
    name = _CLASSES.get(architecture)
    if name not in checkpoint.settings:
        raise ValueError(f"{architecture}: the file holds {', '.join(checkpoint.settings)}")
    stated = dict(checkpoint.settings[name])
    for key in hyper.keys() & stated.keys():
        if _listed(hyper[key]) != _listed(stated[key]):
            raise ValueError(f"the file has {key}={stated[key]!r}; got {hyper[key]!r}")
    return stated


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
