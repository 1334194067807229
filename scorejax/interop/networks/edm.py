# SPDX-License-Identifier: Apache-2.0
"""Weights of the networks published with EDM, tensor by tensor, for our modules.

The official tensors are named by level: `enc.16x16_block0.conv0.weight` belongs to the first block
at 16 pixels on the way down. `_walk` pairs our layers with theirs, and says of which kind they are.
Buffers with resampling filters are compared with the setting and not loaded.
Source of the names: Karras et al. 2022, arXiv:2206.00364, published code.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Float

from scorejax.choices import choose, require_known
from scorejax.interop.tensors import (
    CONV,
    LINEAR,
    POINTWISE,
    Correspondence,
    Match,
    Turn,
    affine,
    arrays_by_name,
    correspond,
    fill,
    norm,
    official_tensors,
    param_shapes,
)
from scorejax.models.dhariwal import DhariwalUNet
from scorejax.models.songunet import SongUNet

_COMMON = {
    "model_channels": "nf", "channel_mult": "ch_mult", "num_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions", "dropout": "dropout", "label_dim": "label_dim",
    "label_dropout": "label_dropout", "augment_dim": "augment_dim", "out_channels": "out_channels",
    "channel_mult_emb": "channel_mult_emb",
}  # fmt: skip
_SONG = _COMMON | {
    "embedding_type": "embedding_type", "channel_mult_noise": "channel_mult_noise",
    "encoder_type": "progressive_input", "decoder_type": "progressive",
    "resample_filter": "fir_kernel",
}  # fmt: skip
_MEANS = {
    "encoder_type": {"standard": "none", "skip": "input_skip", "residual": "residual"},
    "decoder_type": {"standard": "none", "skip": "output_skip"},
    "embedding_type": {"positional": "positional", "fourier": "fourier"},
}
_OTHER_SETTINGS = (
    "img_resolution", "in_channels", "img_channels", "class_name", "model_type", "use_fp16",
    "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2",
)  # fmt: skip
"""Settings of the image, of the preconditioner and of the arithmetic."""

_NETWORKS = {"edm/song_unet": (SongUNet, _SONG), "edm/dhariwal_unet": (DhariwalUNet, _COMMON)}
ARCHITECTURES = tuple(_NETWORKS)
"""Names of the networks whose weights `load_torch` of this module loads."""


def _attention() -> list[Match]:
    """Query, key and value are every third channel of one joint 1x1 convolution."""
    matches = norm("norm2.", "norm/") + affine("proj.", "out/", POINTWISE)
    for i, name in enumerate(("query", "key", "value")):
        kernel = Turn(
            lambda a, i=i: a.reshape(-1, 3, a.shape[1])[:, i].T, lambda s: (3 * s[1], s[0], 1, 1)
        )
        bias = Turn(lambda a, i=i: a.reshape(-1, 3)[:, i], lambda s: (3 * s[0],))
        matches.append(Match("qkv.weight", f"{name}/kernel", kernel))
        matches.append(Match("qkv.bias", f"{name}/bias", bias))
    return matches


_BLOCK = [
    *norm("norm0.", "norm_0/"),
    *affine("conv0.", "conv_0/", CONV),
    Match("conv0.bias", "conv_0_bias"),
    *affine("affine.", "temb/", LINEAR),
    *norm("norm1.", "norm_1/"),
    *affine("conv1.", "conv_1/", CONV),
    *affine("skip.", "shortcut/", POINTWISE),
]
_ATTENTION = _attention()
_CONV, _LINEAR, _NORM = affine("", "", CONV), affine("", "", LINEAR), norm("", "")
_COMBINE = affine("", "conv/", POINTWISE)


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a network published with EDM and its variables.

    The network is the bare one, without its preconditioner: (x (b, h, w, c), noise_label (b,)[,
    class_labels[, augment_labels]]). `hyper` holds its official settings, `img_resolution` among
    them; a prefix `module.` or `model.` of all names is dropped.

    Raises: ValueError for an unknown setting, and for tensors that do not fit.
    """
    net = build(architecture, hyper)
    state = arrays_by_name(state_dict, ("module.", "model."))
    table = correspondence(net, hyper)._replace(tolerated=_filters(net, state))
    return net, {"params": fill(architecture, state, table)}


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, in our order: `load_torch` undone, exactly. Raises: as `load_torch`."""
    net = build(architecture, hyper)
    state = official_tensors(architecture, variables["params"], correspondence(net, hyper))
    taps = _resampling(net).astype(np.float32)[None, None]
    return state | {f"{layer}.resample_filter": taps for layer in _resampling_layers(net, state)}


def correspondence(net: nn.Module, hyper: Mapping[str, Any]) -> Correspondence:
    """Pairs the official tensors with the parameters of a network."""
    size, channels = hyper["img_resolution"], hyper.get("in_channels", hyper.get("img_channels", 3))
    matches = (
        match.within(f"{official}.", f"{layer}/")
        for layer, official, rules in _walk(net, size)
        for match in rules
    )
    return correspond(matches, param_shapes(net, size, channels))


PRECONDITIONERS = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}
"""Our names of the preconditioners -> their official classes."""
_UNCHECKED = ("dropout", "label_dropout")
"""Settings that training may change."""


def settings_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The official settings of the network that a config of ours describes.

    `stated` holds the file's settings by class. Raises: ValueError for an unknown preconditioner,
    or if the file states another one.
    """
    wanted = choose("preconditioner", config["preconditioner"], PRECONDITIONERS)
    if stated and wanted not in stated:
        raise ValueError(f"the file holds {', '.join(stated)}; the config needs {wanted}")
    official = {theirs: config[ours] for theirs, ours in _SONG.items() if ours in config}
    for key, means in _MEANS.items():
        official[key] = next(theirs for theirs, ours in means.items() if ours == official[key])
    official["img_resolution"] = config["image_size"]
    official["in_channels"] = official["out_channels"] = config["num_channels"]
    return {key: value for key, value in official.items() if key not in _UNCHECKED}


def build(architecture: str, hyper: Mapping[str, Any]) -> nn.Module:
    """The network that the official settings describe. Raises: ValueError as `load_torch`."""
    kind, options = _NETWORKS[architecture]
    return kind(**_module_options(options, hyper))


def _module_options(options: Mapping[str, str], hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The module's hyper-parameters, from the official settings."""
    for key in hyper:
        require_known("setting", key, (*options, *_OTHER_SETTINGS))
    if "img_resolution" not in hyper:
        raise ValueError("EDM's networks need the setting img_resolution, the height in pixels.")
    fields = {}
    for key, value in hyper.items():
        if key in options:
            value = choose(key, value, _MEANS[key]) if key in _MEANS else value
            fields[options[key]] = tuple(value) if isinstance(value, list) else value
    return fields


Walk = Iterator[tuple[str, str, list[Match]]]
"""(our layer, the official one, matches relative to both); some are not in every network."""


def _walk(net: nn.Module, size: int) -> Walk:
    yield "fourier", "map_noise", [Match("freqs", "frequencies")]
    for i in range(2):
        for layer in (f"temb/dense_{i}", f"temb_{i}"):
            yield layer, f"map_layer{i}", _LINEAR
    yield "class_embedding", "map_label", _LINEAR
    yield "augment_embedding", "map_augment", _LINEAR
    names = [f"{size >> level}x{size >> level}" for level in range(len(net.ch_mult))]
    yield "conv_in", f"enc.{names[0]}_conv", _CONV
    for level, name in enumerate(names):
        yield from _walk_level(level, name, net.num_res_blocks)
        yield f"down_{level - 1}_resample", f"enc.{name}_down", _BLOCK
        yield f"down_{level - 1}_pyramid", f"enc.{name}_aux_residual", _CONV
        yield f"down_{level - 1}_pyramid", f"enc.{name}_aux_skip", _COMBINE
        yield f"up_{level + 1}_resample", f"dec.{name}_up", _BLOCK
    for i in range(2):
        yield f"middle_block_{i}", f"dec.{names[-1]}_in{i}", _BLOCK
    yield "middle_attn", f"dec.{names[-1]}_in0", _ATTENTION
    prefix = f"dec.{names[0]}_aux" if isinstance(net, SongUNet) else "out"
    yield "out_norm", f"{prefix}_norm", _NORM
    yield "out_conv", f"{prefix}_conv", _CONV


def _walk_level(level: int, name: str, num_blocks: int) -> Walk:
    for i in range(num_blocks + 1):
        for ours, official in (("down", "enc"), ("up", "dec")):
            yield f"{ours}_{level}_block_{i}", f"{official}.{name}_block{i}", _BLOCK
            yield f"{ours}_{level}_attn_{i}", f"{official}.{name}_block{i}", _ATTENTION
    yield f"up_{level}_attn", f"dec.{name}_block{num_blocks}", _ATTENTION
    yield f"up_{level}_pyramid_norm", f"dec.{name}_aux_norm", _NORM
    yield f"up_{level}_pyramid_conv", f"dec.{name}_aux_conv", _CONV


def _resampling(net: nn.Module) -> Float[np.ndarray, "k k"]:
    """The resampling filter (k, k) that the network's setting gives, summing to one."""
    taps = np.asarray(getattr(net, "fir_kernel", (1, 1)), float)
    return np.outer(taps, taps) / taps.sum() ** 2


_DOWN = {"input_skip": "aux_down", "residual": "aux_residual"}
_UP = {"output_skip": "aux_up"}
"""Kind of pyramid -> its layer that resamples."""


def _resampling_layers(net: nn.Module, state: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Names the official layers that have a buffer with the filter."""
    down = _DOWN.get(getattr(net, "progressive_input", "none"))
    up = _UP.get(getattr(net, "progressive", "none"))
    for name in state:
        for end, pyramid in (("_down.conv0.weight", down), ("_up.conv0.weight", up)):
            if name.endswith(end):
                block = name.removesuffix(".conv0.weight")
                yield from (f"{block}.conv0", f"{block}.skip")
                if pyramid:
                    yield f"{name.removesuffix(end)}_{pyramid}"


def _filters(net: nn.Module, state: Mapping[str, np.ndarray]) -> set[str]:
    """Names of the buffers that hold the resampling filter.

    Raises: ValueError if one is not the filter of the setting.
    """
    expected = _resampling(net)
    names = {name for name in state if name.endswith(".resample_filter")}
    for name in names:
        taken = state[name].reshape(state[name].shape[-2:])
        if taken.shape != expected.shape or not np.allclose(taken, expected, atol=1e-6):
            taps = getattr(net, "fir_kernel", (1, 1))
            raise ValueError(f"{name} is not the setting resample_filter={tuple(taps)}.")
    return names
