# SPDX-License-Identifier: Apache-2.0
"""Weights of the networks published with score SDEs in PyTorch: NCSN++, DDPM++ and DDPM.

The official tensors are named by the place of their layer in the order of action, `all_modules.0`,
`all_modules.1`, ... `walk` lists our layers in that order; `TENSORS` has the matches of each kind
of layer.
Source of the names: Song et al. 2021, arXiv:2011.13456, published code.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scorejax.choices import require_known
from scorejax.interop.tensors import (
    CONV,
    LINEAR,
    POINTWISE,
    Correspondence,
    Match,
    affine,
    arrays_by_name,
    correspond,
    fill,
    norm,
    official_tensors,
    param_shapes,
)
from scorejax.models.ncsnpp import NCSNpp
from scorejax.numerics import expand


def nin(official: str, ours: str) -> list[Match]:
    """Matches the matrix, which is stored as ours is, and the bias of a network in network."""
    return [Match(f"{official}W", f"{ours}kernel"), Match(f"{official}b", f"{ours}bias")]


_BLOCK = [
    *norm("GroupNorm_0.", "norm_0/"),
    Match("Conv_0.weight", "conv_0/kernel", CONV),
    Match("Conv_0.bias", "conv_0_bias"),
    *affine("Dense_0.", "temb/", LINEAR),
    *norm("GroupNorm_1.", "norm_1/"),
    *affine("Conv_1.", "conv_1/", CONV),
]
_ATTENTION = [
    *norm("GroupNorm_0.", "norm/"),
    *nin("NIN_0.", "query/"),
    *nin("NIN_1.", "key/"),
    *nin("NIN_2.", "value/"),
    *nin("NIN_3.", "out/"),
]

TENSORS = {
    "fourier": [Match("W", "frequencies")],
    "dense": affine("", "", LINEAR),
    "conv": affine("", "", CONV),
    "norm": norm("", ""),
    "attention": _ATTENTION,
    "ddpm": _BLOCK + nin("NIN_0.", "shortcut/"),
    "biggan": _BLOCK + affine("Conv_2.", "shortcut/", POINTWISE),
    "combine": affine("Conv_0.", "conv/", POINTWISE),
    "resample": affine("Conv_0.", "", CONV),
    "fir_resample": affine("Conv2d_0.", "", CONV),
    "without parameters": [],
}
"""Kind of layer -> matches of its tensors, relative to the layer."""

Walk = Iterator[tuple[str, str]]
"""(name of our layer, its kind) in the official order."""


def walk(net: NCSNpp, image_size: int) -> Walk:
    """Layers of NCSN++, DDPM++ and DDPM, in the order in which they act."""
    if net.embedding_type == "fourier":
        yield "fourier", "fourier"
    if net.conditional:
        yield from (("temb/dense_0", "dense"), ("temb/dense_1", "dense"))
    yield "conv_in", "conv"
    sizes = [image_size >> level for level in range(len(net.ch_mult))]
    for level, size in enumerate(sizes):
        yield from _walk_encoder_level(net, level, attention=size in net.attn_resolutions)
    yield "middle_block_0", net.resblock_type
    yield "middle_attn", "attention"
    yield "middle_block_1", net.resblock_type
    for level, size in reversed(list(enumerate(sizes))):
        yield from _walk_decoder_level(net, level, attention=size in net.attn_resolutions)
    if net.progressive != "output_skip":
        yield from (("out_norm", "norm"), ("out_conv", "conv"))


def _walk_encoder_level(net: NCSNpp, level: int, *, attention: bool) -> Walk:
    for i in range(net.num_res_blocks):
        yield f"down_{level}_block_{i}", net.resblock_type
        if attention:
            yield f"down_{level}_attn_{i}", "attention"
    if level + 1 < len(net.ch_mult):
        yield f"down_{level}_resample", _resampling(net)
        if net.progressive_input == "input_skip":
            yield f"down_{level}_pyramid", "combine"
        elif net.progressive_input == "residual":
            yield f"down_{level}_pyramid", "fir_resample" if net.fir else "resample"


def _walk_decoder_level(net: NCSNpp, level: int, *, attention: bool) -> Walk:
    for i in range(net.num_res_blocks + 1):
        yield f"up_{level}_block_{i}", net.resblock_type
    if attention:
        yield f"up_{level}_attn", "attention"
    coarsest = level + 1 == len(net.ch_mult)
    if net.progressive == "output_skip" or (net.progressive == "residual" and coarsest):
        yield from ((f"up_{level}_pyramid_norm", "norm"), (f"up_{level}_pyramid_conv", "conv"))
    elif net.progressive == "residual":
        yield f"up_{level}_pyramid", "fir_resample" if net.fir else "resample"
    if level:
        yield f"up_{level}_resample", _resampling(net)


def _resampling(net: NCSNpp) -> str:
    if net.resblock_type == "biggan":
        return "biggan"
    if not net.resamp_with_conv:
        return "without parameters"
    return "fir_resample" if net.fir else "resample"


class DividedBySigma(nn.Module):
    """A network whose output is divided by the noise level, as the official VE networks are.

    The label is sigma itself, or, with `num_scales`, an index into the table `constants/sigmas`.
    """

    network: nn.Module
    num_scales: int | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array) -> Array:
        sigma = label
        if self.num_scales is not None:
            table = self.variable("constants", "sigmas", jnp.zeros, (self.num_scales,))
            sigma = table.value[label.astype(jnp.int32)]
        return self.network(x, label) / expand(sigma.astype(x.dtype), x)


_NETWORK_OPTIONS = (
    "nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout", "conditional", "centered",
    "embedding_type", "fourier_scale", "resblock_type", "resamp_with_conv", "fir", "fir_kernel",
    "progressive", "progressive_input", "progressive_combine", "skip_rescale", "init_scale",
)  # fmt: skip
_OTHER_OPTIONS = (
    "scale_by_sigma", "image_size", "num_channels", "num_scales", "nonlinearity", "normalization",
    "attention_type", "beta_max", "beta_min", "continuous", "conv_size", "ema_rate", "name", "sde",
    "sigma_max", "sigma_min",
)  # fmt: skip
SETTINGS = _NETWORK_OPTIONS + _OTHER_OPTIONS
"""Names of the official settings of models and data."""


def _build_ncsnpp(hyper: Mapping[str, Any]) -> NCSNpp:
    options = {key: hyper[key] for key in _NETWORK_OPTIONS if key in hyper}
    return NCSNpp(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


_DDPM = {
    "embedding_type": "positional", "resblock_type": "ddpm", "fir": False, "skip_rescale": False,
    "init_scale": 0.0, "progressive": "none", "progressive_input": "none",
}  # fmt: skip

_ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], NCSNpp]] = {
    "score_sde/ncsnpp": _build_ncsnpp,
    "score_sde/ddpm": lambda hyper: _build_ncsnpp({**hyper, **_DDPM}).clone(num_groups=32),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
"""Names of the networks whose weights `load_torch` of this module loads."""


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published network and its variables, from the official state dictionary.

    `hyper` holds the official settings of the model and the data, `image_size` among them. The
    module computes what the official network does, division by sigma included, with images as
    (b, h, w, c). A prefix `module.` of all names is dropped.

    Raises: ValueError for an unknown architecture or setting, and for tensors that are missing,
    surplus or misshapen.
    """
    net = build(architecture, hyper)
    state = arrays_by_name(state_dict)
    table = correspondence(net, hyper)
    if not hyper.get("scale_by_sigma", False):
        return net, {"params": fill(architecture, state, table)}
    if net.embedding_type == "fourier":  # The label is sigma itself.
        return DividedBySigma(net), {"params": {"network": fill(architecture, state, table)}}
    shapes = table.shapes | {"sigmas": (hyper.get("num_scales", 1000),)}
    params = fill(architecture, state, table._replace(shapes=shapes))
    sigmas = jnp.asarray(state["sigmas"], float)
    variables = {"params": {"network": params}, "constants": {"sigmas": sigmas}}
    return DividedBySigma(net, len(sigmas)), variables


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, in the official order: `load_torch` undone, exactly.

    `variables` are those of the module that `load_torch` returns for the same settings. The table
    `sigmas`, a buffer of every official network, follows from sigma_min, sigma_max and num_scales.
    An unconditional official network has label weights, which act on nothing and are left out.

    Raises: ValueError for an unknown architecture or setting, and for parameters that are missing,
    surplus or misshapen.
    """
    net = build(architecture, hyper)
    params = variables["params"]
    if hyper.get("scale_by_sigma", False):
        params = params.get("network", {})
    sigmas = published_sigmas(hyper)
    ours = variables.get("constants", {}).get("sigmas")
    # Ours are in single precision.
    if ours is not None and not (
        ours.shape == sigmas.shape and np.allclose(ours, sigmas, rtol=1e-5)
    ):
        raise ValueError(
            f"the noise levels of the variables, {ours[0]:.6g} ... {ours[-1]:.6g}, are not those "
            f"of sigma_min, sigma_max and num_scales, {sigmas[0]:.6g} ... {sigmas[-1]:.6g}"
        )
    tensors = official_tensors(architecture, params, correspondence(net, hyper))
    return {"sigmas": sigmas} | tensors


def published_sigmas(hyper: Mapping[str, Any]) -> np.ndarray:
    """Noise levels (num_scales,) from the largest to the smallest, by the official formula."""
    largest, smallest = hyper.get("sigma_max", 50), hyper.get("sigma_min", 0.01)
    return np.exp(np.linspace(np.log(largest), np.log(smallest), hyper.get("num_scales", 1000)))


def settings_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The official settings among a config's keys; `stated`, the file's settings, is not used."""
    return {key: config[key] for key in SETTINGS if key in config}


def build(architecture: str, hyper: Mapping[str, Any]) -> NCSNpp:
    """The network that the official settings describe. Raises: ValueError as `load_torch`."""
    require_known("architecture", architecture, _ARCHITECTURES)
    for key in hyper:
        require_known("setting", key, SETTINGS)
    _require_settings(architecture, hyper)
    return _ARCHITECTURES[architecture](hyper)


def _require_settings(architecture: str, hyper: Mapping[str, Any]) -> None:
    if "image_size" not in hyper:
        raise ValueError(f"{architecture} needs the setting image_size, the height in pixels.")
    for key, only in (("nonlinearity", "swish"), ("normalization", "GroupNorm")):
        if hyper.get(key, only) != only:
            raise ValueError(f"{architecture} has {key}={only!r} only; got {hyper[key]!r}.")


def correspondence(net: NCSNpp, hyper: Mapping[str, Any]) -> Correspondence:
    """Pairs the official tensors with the parameters of a network.

    Without conditioning the official network still has weights for the label, which act on nothing.
    """
    size = hyper["image_size"]
    targets = param_shapes(net, size, hyper.get("num_channels", 3))
    matches, tolerated = [], {"sigmas"}
    for index, (layer, kind) in enumerate(walk(net, size)):
        for match in TENSORS[kind]:
            placed = match.within(f"all_modules.{index}.", f"{layer}/")
            matches.append(placed)
            if not net.conditional and match.ours.startswith(("temb", "frequencies")):
                tolerated.add(placed.official)
    return correspond(matches, targets, tolerated)
