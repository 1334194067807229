# SPDX-License-Identifier: Apache-2.0
"""Weights of NCSN and NCSNv2, as published and as copied into the score-SDE code.

The official tensors are named by stage: `res2.0.conv1.weight` belongs to the first block of the
second stage, `refine1` to the coarsest. In the deepest network a stage `31` follows the third.
Source of the names: Song & Ermon 2020, arXiv:2006.09011, published code.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from scorejax.choices import require_known
from scorejax.interop.networks import score_sde
from scorejax.interop.networks.score_sde import DividedBySigma
from scorejax.interop.tensors import (
    CONV,
    Correspondence,
    Match,
    affine,
    arrays_by_name,
    correspond,
    fill,
    official_tensors,
    param_shapes,
)
from scorejax.models import refinenet
from scorejax.schedules import geometric_sigmas

_NETWORKS = {
    "ncsnv2/ncsn": refinenet.NCSN(),
    "ncsnv2/ncsnv2": refinenet.NCSNv2(stages=refinenet.NCSNV2),
    "ncsnv2/ncsnv2_deeper": refinenet.NCSNv2(stages=refinenet.NCSNV2_DEEPER),
    "ncsnv2/ncsnv2_deepest": refinenet.NCSNv2(stages=refinenet.NCSNV2_DEEPEST),
}
_COPIES = {"": "", "_64": "", "_128": "_deeper", "_256": "_deepest"}
_NETWORKS |= {f"score_sde/ncsnv2{k}": _NETWORKS[f"ncsnv2/ncsnv2{v}"] for k, v in _COPIES.items()}
ARCHITECTURES = tuple(_NETWORKS)
"""Names of the networks whose weights `load_torch` of this module loads."""

_NAMES = {
    "ngf": "nf", "num_classes": "num_scales", "sigma_begin": "sigma_max", "sigma_end": "sigma_min",
}  # fmt: skip
"""Settings of the published NCSNv2 -> their names in the score-SDE code."""
_OTHER_SETTINGS = (
    "spec_norm", "sigma_dist", "ema", "interpolation", "logit_transform", "rescaled", "dataset",
    "channels", "num_workers", "random_flip", "uniform_dequantization", "gaussian_dequantization",
)  # fmt: skip
SETTINGS = (*_NAMES, *score_sde.SETTINGS, *_OTHER_SETTINGS)
"""Names of the official settings of models and data."""


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[nn.Module, dict]:
    """The module of a published NCSN and its variables: (x (b, h, w, c), level (b,)) -> score.

    The level is an index into the table of noise levels, 0 the noisiest. `hyper` holds the official
    settings, `image_size` among them; a prefix `module.` of all names is dropped.

    Raises: ValueError for an unknown setting, and for tensors that do not fit.
    """
    net = build(architecture, hyper)
    state = arrays_by_name(state_dict)
    table = correspondence(net, hyper)
    if isinstance(net, refinenet.NCSN):
        return net, {"params": fill(architecture, state, table)}
    table = table._replace(shapes={"sigmas": sigmas(hyper).shape} | table.shapes)
    params = fill(architecture, state, table)
    constants = {"sigmas": jnp.asarray(state["sigmas"], float)}
    divided = DividedBySigma(net, len(state["sigmas"]))
    return divided, {"params": {"network": params}, "constants": constants}


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, in our order: `load_torch` undone, exactly. Raises: as `load_torch`."""
    net = build(architecture, hyper)
    table, params = correspondence(net, hyper), variables["params"]
    if isinstance(net, refinenet.NCSN):
        return official_tensors(architecture, params, table)
    levels = np.asarray(variables.get("constants", {}).get("sigmas", sigmas(hyper)))
    if levels.shape != sigmas(hyper).shape:
        raise ValueError(f"{architecture} needs {sigmas(hyper).size} levels; got {levels.size}")
    tensors = official_tensors(architecture, params.get("network", {}), table)
    return {"sigmas": levels} | tensors


def settings_of(config: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The official settings among a config's keys; `stated`, the file's settings, is not used."""
    return {key: config[key] for key in SETTINGS if key in config}


def build(architecture: str, hyper: Mapping[str, Any]) -> refinenet.NCSNv2:
    """The network that the official settings describe. Raises: ValueError as `load_torch`."""
    for key in hyper:
        require_known("setting", key, SETTINGS)
    if "image_size" not in hyper:
        raise ValueError(f"{architecture} needs the setting image_size, the height in pixels.")
    ours = _renamed(hyper)
    centered = ours.get("centered", False) or ours.get("rescaled", False)
    net = _NETWORKS[architecture].clone(features=ours.get("nf", 128), centered=centered)
    if isinstance(net, refinenet.NCSN):
        net = net.clone(num_scales=ours.get("num_scales", 10))
    return net


def sigmas(hyper: Mapping[str, Any]) -> np.ndarray:
    """The official noise levels (num_scales,), descending."""
    ours = _renamed(hyper)
    largest, smallest = ours.get("sigma_max", 50), ours.get("sigma_min", 0.01)
    return geometric_sigmas(float(smallest), float(largest), ours.get("num_scales", 232))


def correspondence(net: refinenet.NCSNv2, hyper: Mapping[str, Any]) -> Correspondence:
    """Pairs the official tensors with the parameters of a network."""
    targets = param_shapes(net, hyper["image_size"], hyper.get("num_channels", 3))
    return correspond(_walk(net), targets)


def _renamed(hyper: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names of the score-SDE code."""
    return {_NAMES.get(key, key): value for key, value in hyper.items()}


Walk = Iterator[Match]
"""Matches in our order; some are of layers that not every network has."""

_DEEPEST_DOWN = ("1", "2", "3", "31", "4", "5")
_DEEPEST_UP = ("1", "2", "31", "3", "4", "5")


def _walk(net: refinenet.NCSNv2) -> Walk:
    last = len(net.stages) - 1
    names = [str(i + 1) for i in range(last + 1)]
    down, up = (_DEEPEST_DOWN, _DEEPEST_UP) if len(names) == len(_DEEPEST_UP) else (names, names)
    yield from affine("begin_conv.", "conv_in/", CONV)
    yield from _norm(net, "normalizer.", "norm_out/")
    yield from affine("end_conv.", "conv_out/", CONV)
    for i, stage in enumerate(net.stages):
        shrinks = stage.down and stage.dilation == 1
        for j, pooled in enumerate(("conv." if shrinks else "", "")):
            official, ours = f"res{down[i]}.{j}.", f"stage_{i}_block_{j}/"
            yield from _walk_block(net, official, ours, pooled)
    for i in range(last + 1):
        yield from _walk_refine(net, f"refine{up[i]}.", f"refine_{last - i}/")


def _walk_block(net: refinenet.NCSNv2, official: str, ours: str, pooled: str) -> Walk:
    """`pooled` prefixes the tensors of convolutions whose result is pooled."""
    for i in range(2):
        yield from _norm(net, f"{official}normalize{i + 1}.", f"{ours}norm_{i}/")
    yield from affine(f"{official}conv1.", f"{ours}conv_0/", CONV)
    yield from affine(f"{official}conv2.{pooled}", f"{ours}conv_1/", CONV)
    yield from affine(f"{official}shortcut.{pooled}", f"{ours}shortcut/", CONV)


def _walk_refine(net: refinenet.NCSNv2, official: str, ours: str) -> Walk:
    units = [(f"adapt_convs.{i}.", f"adapt_{i}/") for i in range(2)]
    for theirs, unit in (*units, ("output_convs.", "output/")):
        for i in range(3):
            for j in range(2):
                step, path = f"{official}{theirs}{i + 1}_{j + 1}", f"{ours}{unit}block_{i}"
                yield from affine(f"{step}_conv.", f"{path}_conv_{j}/", CONV)
                yield from _norm(net, f"{step}_norm.", f"{path}_norm_{j}/")
    for theirs, unit in (("msf.", "fusion/"), ("crp.", "pooling/")):
        for i in range(2):
            yield from affine(f"{official}{theirs}convs.{i}.", f"{ours}{unit}conv_{i}/", CONV)
            yield from _norm(net, f"{official}{theirs}norms.{i}.", f"{ours}{unit}norm_{i}/")


def _norm(net: refinenet.NCSNv2, official: str, ours: str) -> Walk:
    if isinstance(net, refinenet.NCSN):
        yield Match(f"{official}embed.weight", f"{ours}table")
    for leaf in ("alpha", "gamma", "beta"):
        yield Match(f"{official}{leaf}", f"{ours}{leaf}")
