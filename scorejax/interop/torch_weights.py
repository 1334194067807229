# SPDX-License-Identifier: Apache-2.0
"""Weights of published PyTorch networks, tensor by tensor, for our modules.

Each architecture has a walk over its layers in the order in which the official network lists them
(`all_modules.0`, `all_modules.1`, ...); `TENSORS` says what each kind of layer holds, how we name
it, and how its axes are turned.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from scorejax.choices import require_known
from scorejax.interop.fit import param_shapes, require_fit
from scorejax.models.ncsnpp import NCSNpp
from scorejax.numerics import expand


class Turn(NamedTuple):
    """A tensor from the official axes to ours, and a shape from ours to the official."""

    tensor: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Turn(lambda a: a, lambda s: s)
LINEAR = Turn(lambda a: a.T, lambda s: s[::-1])
POINTWISE = Turn(lambda a: a[:, :, 0, 0].T, lambda s: (s[1], s[0], 1, 1))
CONV = Turn(lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1]))


def affine(official: str, ours: str, turn: Turn) -> dict[str, tuple[str, Turn]]:
    """Names of a convolution or a linear map, with its bias."""
    return {f"{official}weight": (f"{ours}kernel", turn), f"{official}bias": (f"{ours}bias", SAME)}


def norm(official: str, ours: str) -> dict[str, tuple[str, Turn]]:
    """Names of a group normalisation."""
    return {f"{official}weight": (f"{ours}scale", SAME), f"{official}bias": (f"{ours}bias", SAME)}


def nin(official: str, ours: str) -> dict[str, tuple[str, Turn]]:
    """Names of a network in network, whose matrix is stored as ours is."""
    return {f"{official}W": (f"{ours}kernel", SAME), f"{official}b": (f"{ours}bias", SAME)}


_BLOCK = {
    **norm("GroupNorm_0.", "norm_0/"),
    "Conv_0.weight": ("conv_0/kernel", CONV),
    "Conv_0.bias": ("conv_0_bias", SAME),
    **affine("Dense_0.", "temb/", LINEAR),
    **norm("GroupNorm_1.", "norm_1/"),
    **affine("Conv_1.", "conv_1/", CONV),
}
_ATTENTION = norm("GroupNorm_0.", "norm/")
for _index, _name in enumerate(("query", "key", "value", "out")):
    _ATTENTION |= nin(f"NIN_{_index}.", f"{_name}/")

TENSORS = {
    "fourier": {"W": ("frequencies", SAME)},
    "dense": affine("", "", LINEAR),
    "conv": affine("", "", CONV),
    "norm": norm("", ""),
    "attention": _ATTENTION,
    "ddpm": _BLOCK | nin("NIN_0.", "shortcut/"),
    "biggan": _BLOCK | affine("Conv_2.", "shortcut/", POINTWISE),
    "combine": affine("Conv_0.", "conv/", POINTWISE),
    "resample": affine("Conv_0.", "", CONV),
    "fir_resample": affine("Conv2d_0.", "", CONV),
    "without parameters": {},
}
"""Kind of layer -> {official tensor: (our parameter, how its axes turn)}."""

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

    `hyper` holds the official settings of the model and the data, `image_size` among them. Images
    go in and out as (b, h, w, c), else the module computes what the official network does: a VE
    network divides by sigma. A prefix `module.` of all names is dropped.

    Raises: ValueError for an unknown architecture or setting, and for tensors that are missing,
    surplus or misshapen.
    """
    net = build(architecture, hyper)
    state = {key.removeprefix("module."): np.asarray(value) for key, value in state_dict.items()}
    params = _fill(architecture, net, state, hyper)
    return _divide_by_sigma(net, params, state, hyper)


def settings_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The official settings of the network and data that a config of ours describes."""
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


class Correspondence(NamedTuple):
    """The official tensors of a network, by name, and what each is for us."""

    ours: dict[str, tuple[str, Turn]]
    """The parameter, as a path `layer/kernel`, and how its axes turn; in the official order."""
    shapes: dict[str, tuple[int, ...]]
    tolerated: set[str]
    """Tensors that the official network has and does not use."""


def fill(architecture: str, state: Mapping[str, np.ndarray], table: Correspondence) -> dict:
    """Our parameters, each from its official tensor. Raises: ValueError as `require_fit`."""
    require_fit(architecture, state, table.shapes, table.tolerated)
    flat = {
        path: jnp.asarray(turn.tensor(state[name]), float)
        for name, (path, turn) in table.ours.items()
    }
    return unflatten_dict(flat, sep="/")


def correspondence(net: NCSNpp, hyper: Mapping[str, Any]) -> Correspondence:
    """Pairs the official tensors with the parameters of a network."""
    size = hyper["image_size"]
    targets = param_shapes(net, size, hyper.get("num_channels", 3))
    ours, tolerated = {}, {"sigmas"}
    for index, (layer, kind) in enumerate(walk(net, size)):
        for tensor, (leaf, turn) in TENSORS[kind].items():
            official, path = f"all_modules.{index}.{tensor}", f"{layer}/{leaf}"
            if path in targets:
                ours[official] = (path, turn)
            elif not net.conditional and leaf.startswith(("temb", "frequencies")):
                tolerated.add(official)
    shapes = {name: turn.shape(targets[path]) for name, (path, turn) in ours.items()}
    return Correspondence(ours, shapes, tolerated)


def _fill(
    architecture: str, net: NCSNpp, state: Mapping[str, np.ndarray], hyper: Mapping[str, Any]
) -> dict:
    """Our parameters, each from its official tensor."""
    table = correspondence(net, hyper)
    if hyper.get("scale_by_sigma", False) and net.embedding_type == "positional":
        sigmas = {"sigmas": (hyper.get("num_scales", 1000),)}
        table = table._replace(shapes=table.shapes | sigmas)
    return fill(architecture, state, table)


def _divide_by_sigma(
    net: NCSNpp, params: dict, state: Mapping[str, np.ndarray], hyper: Mapping[str, Any]
) -> tuple[nn.Module, dict]:
    """The network as it was trained: with its output divided by sigma, or as it is."""
    if not hyper.get("scale_by_sigma", False):
        return net, {"params": params}
    variables = {"params": {"network": params}}
    if net.embedding_type == "fourier":
        return DividedBySigma(net), variables
    sigmas = jnp.asarray(state["sigmas"], float)
    return DividedBySigma(net, len(sigmas)), variables | {"constants": {"sigmas": sigmas}}
