# SPDX-License-Identifier: Apache-2.0
"""Weights of BiO-Net, from and to the official PyTorch code.

The official network lists a layer under the name of each pass that uses it. A convolution appears
once for each pass, with equal tensors, and is one layer of ours; batch normalisations differ.
Source of the names: Xiang et al. 2020, arXiv:2007.00243, published code.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scorejax.choices import require_known
from scorejax.interop.tensors import (
    CONV,
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
)
from scorejax.models.bionet import BiONet, torch_bionet
from scorejax.typing import Shape

ARCHITECTURES = ("bionet/bionet",)
"""Names of the networks whose weights `load_torch` of this module loads."""
SETTINGS = (
    "iterations", "integrate", "multiplier", "num_layers", "num_classes", "input_channels",
    "num_channels", "image_size",
)  # fmt: skip
"""Names of the official settings. The official network has one output and ignores num_classes; ours
has as many outputs as its tensors."""

# A transposed convolution: our kernel is the official one, flipped.
TRANSPOSED = Turn(lambda a: a.transpose(2, 3, 0, 1)[::-1, ::-1], lambda s: (s[2], s[3], s[0], s[1]))
COUNTS = "num_batches_tracked"
_PASS_AND_LEVEL = re.compile(r"iteration(\d+)_layer(\d+)_")
SCALAR = np.zeros(())


def load_torch(
    architecture: str, state_dict: Mapping[str, np.ndarray], **hyper: Any
) -> tuple[BiONet, dict]:
    """The module and variables of a trained BiO-Net: x (b, h, w, c) -> the logit.

    `hyper` holds the official settings: iterations, integrate and num_layers, by default 1, False
    and 4. Widths and the number of outputs are those of the tensors; a `multiplier` that is given
    and has others gets a warning. A prefix `module.` of all names is dropped.

    Raises: ValueError for an unknown setting, for tensors that do not fit, and where two names of
    one convolution hold different tensors.
    """
    state = arrays_by_name(state_dict)
    net = build(architecture, hyper)
    kernels = _shaping_kernels(net, state)
    net = _shaped_like(net, hyper, [kernel.shape[:1] for kernel in kernels])
    table, counts = correspondence(net, kernels[0].shape[1:2])
    flat = flatten_dict(fill(architecture, state, table), sep="/")
    _require_equal_aliases(table.matches, state)
    flat |= {m.ours: jnp.asarray(state.get(m.official, 0), jnp.int32) for m in counts}
    return net, unflatten_dict(flat, sep="/")


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, in the official order: `load_torch` undone, exactly.

    Raises: ValueError for an unknown setting, and for variables that are missing, surplus or
    misshapen.
    """
    flat = {path: np.asarray(v) for path, v in flatten_dict(dict(variables), sep="/").items()}
    net = build(architecture, hyper)
    kernels = [flat.get(f"params/{layer}/kernel", SCALAR) for layer in _shaping(net)]
    net = _shaped_like(net, hyper, [kernel.shape[-1:] for kernel in kernels])
    table, counts = correspondence(net, kernels[0].shape[2:3])
    state = {m.official: np.asarray(flat.pop(m.ours, 0), np.int64) for m in counts}
    state |= official_tensors(architecture, flat, table)
    return {match.official: state[match.official] for match in walk(net)}


def correspondence(net: BiONet, channels: Shape) -> tuple[Correspondence, list[Match]]:
    """Pairs the official tensors with the variables of a network; apart, the counts of batches.

    `channels` is (channels,) of the images, or () for three. Counts may be missing from old files.
    """
    matches = [*walk(net)]
    counts = [match for match in matches if match.official.endswith(COUNTS)]
    counted = {match.ours for match in counts}
    shapes = variable_shapes(net, channels)
    real = {path: shape for path, shape in shapes.items() if path not in counted}
    return correspond(matches, real, {match.official for match in counts}), counts


def build(architecture: str, hyper: Mapping[str, Any]) -> BiONet:
    """The network that the official settings describe. Raises: ValueError as `load_torch`."""
    require_known("architecture", architecture, ARCHITECTURES)
    for key in hyper:
        require_known("setting", key, SETTINGS)
    return torch_bionet(
        multiplier=hyper.get("multiplier", 1.0),
        num_levels=hyper.get("num_layers", 4),
        num_passes=hyper.get("iterations", 1),
        integrate=bool(hyper.get("integrate", False)),
    )


def settings_for(
    net: BiONet, state: Mapping[str, np.ndarray], *, num_channels: int
) -> dict[str, Any]:
    """The official settings with which `load_torch` gives `net`, and loads `state` into it.

    Raises: ValueError with one line if the official code has no such network, or if the tensors
    belong to another network or to images with another number of channels.
    """
    _require_official(net)
    places = [match.groups() for match in map(_PASS_AND_LEVEL.match, state) if match]
    for axis, field in enumerate(("num_passes", "num_levels")):
        theirs, ours = {int(place[axis]) + 1 for place in places}, getattr(net, field)
        if theirs and max(theirs) != ours:
            raise ValueError(
                f"the file's tensors have {field}={max(theirs)}; the config has {ours}"
            )
    kernels = _shaping_kernels(net, state)
    shaped = _shaped_like(net, {}, [kernel.shape[:1] for kernel in kernels])
    theirs = {"widths": shaped.widths, "num_classes": shaped.num_classes}
    theirs["num_channels"] = next(iter(kernels[0].shape[1:2]), num_channels)
    ours = {"widths": net.widths, "num_classes": net.num_classes, "num_channels": num_channels}
    for name in ours:
        if theirs[name] != ours[name]:
            raise ValueError(
                f"the file's tensors have {name}={theirs[name]}; the config's network {ours[name]}"
            )
    return {
        "iterations": net.num_passes,
        "integrate": net.integrate,
        "num_layers": net.num_levels,
    }


def _require_official(net: BiONet) -> None:
    if net.dialect.private_middle:
        raise ValueError("bionet/bionet is the PyTorch version; the config's network is Keras'")
    levels = set(range(net.num_levels))
    fed = levels if net.backward_levels is None else set(net.backward_levels)
    if fed != levels:
        raise ValueError(
            f"bionet/bionet has backward skips to levels {sorted(levels)}; the config's network "
            f"has them to {sorted(fed)}"
        )


def _shaping_kernels(net: BiONet, state: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The official kernels of the layers in `_shaping`; a scalar for one that is missing."""
    names = {path: name for name, path, _ in walk(net)}
    return [state.get(names[f"params/{layer}/kernel"], SCALAR) for layer in _shaping(net)]


def _shaping(net: BiONet) -> list[str]:
    """Layers of ours whose numbers of outputs are the widths, finest first, and the head."""
    return ["pre_0", *(f"encoder_{level}_2" for level in range(net.num_levels)), "head"]


def _shaped_like(net: BiONet, hyper: Mapping[str, Any], outputs: Sequence[Shape]) -> BiONet:
    """The network with the widths and outputs of the tensors; unchanged if one is missing."""
    if () in outputs:
        return net  # `require_fit` names the missing ones.
    *widths, num_classes = (size for (size,) in outputs)
    if "multiplier" in hyper and tuple(widths) != net.widths:
        warnings.warn(
            f"multiplier={hyper['multiplier']} means widths {net.widths}; the tensors have "
            f"{tuple(widths)}, and so has the network",
            stacklevel=4,
        )
    return net.clone(widths=tuple(widths), num_classes=num_classes)


def variable_shapes(net: BiONet, channels: Shape) -> dict[str, Shape]:
    """Shapes of all variables by collection/layer/leaf; `channels` as in `correspondence`."""
    side = 2 ** (net.num_levels + 1)
    image = jax.ShapeDtypeStruct((1, side, side, *(channels or (3,))), jnp.float32)
    init = lambda image: net.init(jax.random.key(0), image)
    shapes = flatten_dict(jax.eval_shape(init, image), sep="/")
    return {path: leaf.shape for path, leaf in shapes.items()}


def _require_equal_aliases(matches: list[Match], state: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError if two official names of one convolution hold different tensors."""
    first_names: dict[str, str] = {}
    for name, path, _ in matches:
        first = first_names.setdefault(path, name)
        if not np.array_equal(state[name], state[first]):
            raise ValueError(
                f"{name} and {first} are one convolution and need equal tensors; they differ. "
                "Passes that were trained apart are another network."
            )


def walk(net: BiONet) -> Iterator[Match]:
    """Matches all official tensors, in the official order; shared ones appear for each pass."""
    yield from _units("pre_transform_conv_block.", "pre", (0, 3, 6))
    for number in range(net.num_passes):
        for level in range(net.num_levels):
            prefix = f"iteration{number}_layer{level}_"
            for part in ("encoder", "decoder"):
                yield from _units(f"{prefix}{part}_convs.", f"{part}_{level}", (0, 3), number)
                change, turn = ("down", CONV) if part == "encoder" else ("up", TRANSPOSED)
                yield from _unit(f"{prefix}{part}_{change}.", 0, f"{part}_{level}_2", turn, number)
    yield from _units("middles.", "middle", (0, 3))
    yield from _unit("middles.", 6, "middle_2", TRANSPOSED, 0)
    yield from _units("post_transform_conv_block.", "post", (0, 3))
    head = "post_transform_conv_block.6."
    yield from affine(head, "params/head/", POINTWISE)


def _units(official: str, ours: str, places: tuple[int, ...], number: int = 0) -> Iterator[Match]:
    for i, place in enumerate(places):
        yield from _unit(official, place, f"{ours}_{i}", CONV, number)


def _unit(official: str, place: int, ours: str, turn: Turn, number: int) -> Iterator[Match]:
    """A convolution and, two places on, behind the ReLU, the batch normalisation of a pass."""
    before, statistics = f"{official}{place + 2}.", f"batch_stats/{ours}/norm_{number}"
    yield from affine(f"{official}{place}.", f"params/{ours}/", turn)
    yield from norm(before, f"params/{ours}/norm_{number}/")
    yield Match(f"{before}running_mean", f"{statistics}/mean")
    yield Match(f"{before}running_var", f"{statistics}/var")
    yield Match(f"{before}{COUNTS}", f"{statistics}/count")
