# SPDX-License-Identifier: Apache-2.0
"""Weights of the energy network of diffusion recovery likelihood, tensor by tensor.

The official tensors are named by attribute: `res_levels/1/0/conv2d_2/conv/w` is the second kernel
of the first block of level 1. Under spectral normalisation a layer has the kernel `w`, its vector
`sn_u`, and a second kernel `layer/W`, which nothing reads and which is not loaded here either;
without, it has the kernel `W`. Axes are ours already.
Source of the names: Gao et al. 2021, arXiv:2012.08125, published code.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from scorejax.choices import choose, require_known
from scorejax.interop.tensors import (
    Correspondence,
    Match,
    Turn,
    arrays_by_name,
    correspond,
    fill,
    variable_shapes,
)
from scorejax.models.recovery_resnet import RecoveryResNet

ARCHITECTURES = ("recovery_likelihood/net_res_temb2",)
"""Names of the networks whose weights `load_tensorflow` of this module loads."""

_OPTIONS = {
    "ch": "nf", "ch_mult": "ch_mult", "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions", "spec_norm": "spectral_norm", "act": "activation",
    "final_act": "final_activation", "resamp_with_conv": "resamp_with_conv",
    "res_conv_shortcut": "conv_shortcut", "res_use_scale": "gain",
}  # fmt: skip
"""Official settings -> options of `RecoveryResNet`."""
_MEANS = {
    "act": {"lrelu": "leaky_relu", "swish": "swish"},
    # The published code computes a final leaky ReLU and drops the result.
    "final_act": {"relu": "relu", "swish": "swish", "lrelu": "none"},
}
_OTHER_SETTINGS = (
    "image_size", "num_channels", "use_attention", "normalize", "dropout", "problem", "randflip",
    "num_diffusion_timesteps", "mcmc_num_steps", "mcmc_step_size_b_square", "noise_scale",
    "n_batch_train", "n_batch_per_iter", "n_iters", "lr", "opt", "beta_1", "beta_2", "epsilon",
    "warmup", "cosine_decay", "grad_clip", "ma_decay", "rnd_seed", "eval", "eval_fid",
    "fid_n_samples", "fid_n_iters", "fid_n_batch", "include_xpred_freq",
)  # fmt: skip
"""Settings of the data, of training and of sampling."""


def load_tensorflow(
    architecture: str, arrays: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module and its variables: (x (b, h, w, c), level (b,)) -> F (b,).

    `hyper` holds the official settings, `image_size` among them. The collection "spectral" holds
    the stored `sn_u`, from which each call makes its power iteration, as the official one does.

    Raises: ValueError for an unknown setting, and for tensors that do not fit.
    """
    net, state = build(architecture, hyper), arrays_by_name(arrays, prefixes=("net/",))
    table = correspondence(net, hyper)
    dead = {f"{name.removesuffix('sn_u')}layer/W" for name in table.shapes if name.endswith("sn_u")}
    # The official network declares a last layer that it does not call.
    unused = {name for name in state if name.startswith("fc_out/")}
    return net, fill(architecture, state, table._replace(tolerated=dead | unused))


def settings_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The official settings of the network that a config of ours describes.

    `stated`, the settings in the file, is not used: files of these networks have none.
    """
    official = {theirs: config[ours] for theirs, ours in _OPTIONS.items() if ours in config}
    for key, means in _MEANS.items():
        if key in official:
            official[key] = choose(key, official[key], {b: a for a, b in means.items()})
    official["use_attention"] = bool(official.get("attn_resolutions"))
    return official | {key: config[key] for key in ("image_size", "num_channels")}


def build(architecture: str, hyper: Mapping[str, Any]) -> RecoveryResNet:
    """The network that the official settings describe. Raises: ValueError as `load_tensorflow`."""
    for key in hyper:
        require_known("setting", key, (*_OPTIONS, *_OTHER_SETTINGS))
    if "image_size" not in hyper:
        raise ValueError(f"{architecture} needs the setting image_size, the height in pixels.")
    if hyper.get("normalize") is not None:
        raise ValueError(
            f"{architecture} is loaded without normalisation of activations, as published; "
            f"got normalize={hyper['normalize']!r}"
        )
    fields = {ours: hyper[theirs] for theirs, ours in _OPTIONS.items() if theirs in hyper}
    for key, means in _MEANS.items():
        if key in hyper:
            fields[_OPTIONS[key]] = choose(key, hyper[key], means)
    for field in ("ch_mult", "attn_resolutions"):
        if field in fields:
            fields[field] = tuple(fields[field])
    if not hyper.get("use_attention", False):
        fields["attn_resolutions"] = ()
    return RecoveryResNet(**fields)


def correspondence(net: RecoveryResNet, hyper: Mapping[str, Any]) -> Correspondence:
    """Pairs the official tensors with the variables of a network."""
    size = hyper["image_size"]
    targets = variable_shapes(net, size, hyper.get("num_channels", 3))
    matches = (
        Match(f"{official}/{tensor}", ours, turn)
        for layer, official in _layers(net, size)
        for tensor, ours, turn in _tensors(layer, targets)
    )
    return correspond(matches, targets)


_ROW = Turn(lambda a: a[0], lambda s: (1, *s))


def _tensors(layer: str, targets: Mapping[str, Any]) -> Iterator[Match]:
    """Matches of a layer; the official names are relative to it."""
    normalised = f"spectral/{layer}/u" in targets
    inner = "layer/" if normalised else ""
    yield Match("w" if normalised else "W", f"params/{layer}/kernel")
    yield Match(f"{inner}b", f"params/{layer}/bias")
    yield Match("sn_u", f"spectral/{layer}/u", _ROW)
    block, _, name = layer.rpartition("/")
    if name == "conv_1":
        yield Match(f"{inner}g", f"params/{block}/gain")


def _layers(net: RecoveryResNet, size: int) -> Iterator[tuple[str, str]]:
    """Yields (our layer, the official one); some are not in every network."""
    yield "conv_in", "conv2d_in/conv"
    for i in range(2):
        yield f"temb_{i}", f"temb_dense_{i}/dense"
    yield "readout", "temb_dense_2/dense"
    shortcut = "conv2d_shortcut/conv" if net.conv_shortcut else "nin_shortcut/nin"
    for level in range(len(net.ch_mult)):
        for i in range(net.num_res_blocks):
            block, official = f"level_{level}_block_{i}", f"res_levels/{level}/{i}"
            yield f"{block}/conv_0", f"{official}/conv2d_1/conv"
            yield f"{block}/conv_1", f"{official}/conv2d_2/conv"
            yield f"{block}/temb", f"{official}/dense/dense"
            yield f"{block}/shortcut", f"{official}/{shortcut}"
            attention, official = f"level_{level}_attn_{i}", f"attn_s/{size >> level}/{i}"
            for ours, theirs in _ATTENTION.items():
                yield f"{attention}/{ours}", f"{official}/{theirs}/nin"
        yield f"level_{level}_down", f"downsample_s/{level}/conv2d/conv"


_ATTENTION = {"query": "nin_q", "key": "nin_k", "value": "nin_v", "out": "nin_proj_out"}
