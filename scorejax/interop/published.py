# SPDX-License-Identifier: Apache-2.0
"""Loads published checkpoints: into a network of their own settings, or into one of a config."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn

from scorejax.choices import choose
from scorejax.interop.architectures import (
    FAMILIES,
    TENSORFLOW_FAMILIES,
    load_tensorflow,
    load_torch,
)
from scorejax.interop.networks import bionet
from scorejax.interop.networks.score_sde_flax import load_flax
from scorejax.interop.readers.checkpoint import Checkpoint, StateDict, read_checkpoint
from scorejax.models.layers import group_count
from scorejax.models.ncsnpp import NCSNpp

# Architectures of which a run can be made: no system trains the others.
_IMPORTABLE = TENSORFLOW_FAMILIES | {
    name: FAMILIES[name]
    for name in FAMILIES
    if name not in ("edm/dhariwal_unet", "huggingface/bert")
}
# Fields that change neither the parameters nor what is computed with them in evaluation.
_FREE_FIELDS = ("dtype", "remat", "dropout", "init_scale", "fourier_scale", "num_groups")
_CLASSES = {
    "edm/song_unet": "SongUNet", "edm/dhariwal_unet": "DhariwalUNet", "bionet/bionet": "BiONet",
    "recovery_likelihood/net_res_temb2": "RecoveryResNet",
}  # fmt: skip


def load_checkpoint(
    architecture: str, path: str | os.PathLike, *, averaged: bool = True, **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module and the variables of a published file; `hyper` as in `load_torch`.

    Loads the moving average of the weights, with which all published results are made, or with
    `averaged=False` the raw weights. Settings that the file itself states may be left out of
    `hyper`. Nothing in the file is executed.

    Raises: FileNotFoundError; ValueError with one line if the file is damaged or hostile, lacks the
    weights asked for, or holds tensors that do not fit the architecture.
    """
    checkpoint = read_checkpoint(path)
    stated = _stated(architecture, checkpoint, hyper)
    return _load(architecture, checkpoint, checkpoint.weights(averaged=averaged), stated | hyper)


class Imported(NamedTuple):
    """A network's raw parameters, their moving average, and its untrained variables.

    If the file has only one kind of parameters, `params` and `averaged` are the same.
    """

    params: dict
    averaged: dict
    model_state: dict


def variables_for(
    network: nn.Module, architecture: str, checkpoint: Checkpoint, config: Mapping[str, Any]
) -> Imported:
    """The weights in a file for `network`, which `config` describes.

    `network` is the bare one, without a division by sigma. Raises: ValueError with one line if the
    architecture is another network, or the tensors do not fit.
    """
    family = choose("architecture", architecture, _IMPORTABLE)
    if architecture in _CLASSES:  # A config of another class lacks the settings.
        _require_same_class(architecture, _CLASSES[architecture], network)
    if family is bionet:
        channels = config["num_channels"]
        load = lambda weights: _load(
            architecture,
            checkpoint,
            weights,
            bionet.settings_for(network, weights, num_channels=channels),
        )[1]
    else:
        hyper = family.settings_of(config, checkpoint.settings)
        hyper = _stated(architecture, checkpoint, hyper) | hyper
        require_same_network(architecture, family.build(architecture, hyper), network)
        load = lambda weights: _load(architecture, checkpoint, weights, hyper)[1]
    kinds = [weights for weights in (checkpoint.raw, checkpoint.averaged) if weights is not None]
    loaded = [load(weights) for weights in kinds]
    params = [variables.pop("params") for variables in loaded]
    undivided = [tree.get("network", tree) for tree in params]
    # The noise levels by which a published network divides come from the config.
    model_state = {name: part for name, part in loaded[-1].items() if name != "constants"}
    return Imported(undivided[0], undivided[-1], model_state)


def require_same_network(architecture: str, published: nn.Module, network: nn.Module) -> None:
    """Raises ValueError, naming the setting, if two networks differ in one that matters."""
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
    load = load_flax if checkpoint.layout == "flax" else load_torch
    if architecture in TENSORFLOW_FAMILIES:
        load = load_tensorflow
    return load(architecture, weights, **hyper)


def _stated(architecture: str, checkpoint: Checkpoint, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that the file states. Raises: ValueError if its class or settings are others."""
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
