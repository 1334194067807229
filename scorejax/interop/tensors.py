# SPDX-License-Identifier: Apache-2.0
"""Matches official tensors with the variables of our networks, in both directions.

Each module of `networks` lists its matches. The functions here check that a state dictionary holds
the tensors that the matches name (`require_fit`), fill our parameters with them (`fill`), and write
our parameters as official tensors (`official_tensors`).
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scorejax.typing import Shape


class Turn(NamedTuple):
    """Takes a tensor from the official axes to ours, and a shape from ours to the official one."""

    tensor: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


SAME = Turn(lambda a: a, lambda s: s)
LINEAR = Turn(lambda a: a.T, lambda s: s[::-1])
POINTWISE = Turn(lambda a: a[:, :, 0, 0].T, lambda s: (s[1], s[0], 1, 1))
CONV = Turn(lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1]))


class Match(NamedTuple):
    """An official tensor, the parameter of ours that it holds, and how its axes turn.

    Several parameters may be parts of one official tensor. Ours are named by path, `layer/kernel`.
    """

    official: str
    ours: str
    turn: Turn = SAME

    def within(self, official: str, ours: str) -> "Match":
        """The match of a layer, with the prefixes of the layer's place in the network."""
        return Match(official + self.official, ours + self.ours, self.turn)


def affine(official: str, ours: str, turn: Turn) -> list[Match]:
    """Matches weight and bias of a convolution or a linear map."""
    return [Match(f"{official}weight", f"{ours}kernel", turn), _bias(official, ours)]


def norm(official: str, ours: str) -> list[Match]:
    """Matches scale and bias of a normalisation."""
    return [Match(f"{official}weight", f"{ours}scale"), _bias(official, ours)]


def _bias(official: str, ours: str) -> Match:
    return Match(f"{official}bias", f"{ours}bias")


class Correspondence(NamedTuple):
    """The matches of one network, and the shapes of its official tensors by name."""

    matches: list[Match]
    shapes: dict[str, Shape]
    tolerated: Set[str]
    """Names of tensors that the official network has and that we do not load."""


def correspond(
    matches: Iterable[Match], targets: Mapping[str, Shape], tolerated: Set[str] = frozenset()
) -> Correspondence:
    """The matches whose parameters are among `targets`, our parameters' shapes by path."""
    kept = [match for match in matches if match.ours in targets]
    assert {match.ours for match in kept} == targets.keys(), "every parameter has its match"
    shapes = {match.official: match.turn.shape(targets[match.ours]) for match in kept}
    return Correspondence(kept, shapes, tolerated)


@functools.lru_cache(maxsize=8)  # Raw and averaged weights ask for the same; tracing takes seconds.
def variable_shapes(net: nn.Module, size: int, channels: int) -> dict[str, Shape]:
    """Shapes of the variables of a network of (image, label), by path; images are square.

    The first part of a path is the collection, `params/layer/kernel`.
    """
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.float32)
    # The key is made inside: outside it would be computed, by a program that is compiled.
    init = lambda image, label: net.init(jax.random.key(0), image, label)
    variables = flatten_dict(jax.eval_shape(init, image, label), sep="/")
    return {path: leaf.shape for path, leaf in variables.items()}


def param_shapes(net: nn.Module, size: int, channels: int) -> dict[str, Shape]:
    """Shapes of the parameters by path, `layer/kernel`; otherwise as `variable_shapes`."""
    shapes = variable_shapes(net, size, channels)
    return {k.removeprefix("params/"): s for k, s in shapes.items() if k.startswith("params/")}


def arrays_by_name(
    state_dict: Mapping[str, Any], prefixes: tuple[str, ...] = ("module.",)
) -> dict[str, np.ndarray]:
    """NumPy arrays by name; leading `prefixes`, as wrappers of a network add them, are dropped.

    Raises: ValueError if two names become one.
    """
    leading = re.compile(rf"^(?:{'|'.join(map(re.escape, prefixes))})+")
    arrays: dict[str, np.ndarray] = {}
    for name, array in state_dict.items():
        short = leading.sub("", name)
        if short in arrays:
            raise ValueError(f"the file has {short!r} twice, once as {name!r}: two networks?")
        arrays[short] = np.asarray(array)
    return arrays


def fill(architecture: str, state: Mapping[str, np.ndarray], table: Correspondence) -> dict:
    """Our parameters, each from its official tensor. Raises: ValueError as `require_fit`."""
    require_fit(architecture, state, table.shapes, table.tolerated)
    flat = {
        match.ours: jnp.asarray(match.turn.tensor(state[match.official]), float)
        for match in table.matches
    }
    return unflatten_dict(flat, sep="/")


def official_tensors(
    architecture: str, params: Mapping[str, Any], table: Correspondence
) -> dict[str, np.ndarray]:
    """The official tensors by name, from our parameters: `fill` undone, exactly.

    A turn only moves entries, so turning the numbers 0, 1, ... shows where each entry comes from.
    Raises: ValueError as `require_fit`.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(params), sep="/").items()}
    empty = {name: np.broadcast_to(np.float32(0), shape) for name, shape in table.shapes.items()}
    ours = {match.ours: match.turn.tensor(empty[match.official]).shape for match in table.matches}
    require_fit(architecture, flat, ours, frozenset())
    state: dict[str, np.ndarray] = {}
    for official, path, turn in table.matches:
        shape = table.shapes[official]
        places = turn.tensor(np.arange(math.prod(shape)).reshape(shape))
        tensor = state.setdefault(official, np.empty(shape, flat[path].dtype))
        tensor.ravel()[places.ravel()] = flat[path].ravel()
    return state


def require_fit(
    architecture: str,
    state: Mapping[str, np.ndarray],
    expected: Mapping[str, Shape],
    tolerated: Set[str],
) -> None:
    """Raises ValueError unless `state` has exactly the expected tensors, finite and real.

    `expected` holds shapes by name; names in `tolerated` may be there as well.
    """
    shapes = {name: array.shape for name, array in state.items()}
    present = [name for name in expected if name in shapes]
    missing = [name for name in expected if name not in shapes]
    surplus = [name for name in shapes if name not in expected and name not in tolerated]
    misshapen = [name for name in present if shapes[name] != expected[name]]
    # By kind: the bfloat16 of JAX is a type that NumPy does not count among its own.
    odd = [name for name in present if not jnp.issubdtype(state[name].dtype, jnp.floating)]
    infinite = [n for n in present if n not in odd and not np.isfinite(state[n]).all()]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} missing, first {missing[0]}")
    if surplus:
        complaints.append(f"{len(surplus)} surplus, first {surplus[0]}")
    if misshapen:
        first = misshapen[0]
        complaints.append(
            f"{len(misshapen)} misshapen, first {first} {shapes[first]} for {expected[first]}"
        )
    if odd:
        complaints.append(f"{len(odd)} not real numbers, first {odd[0]} {state[odd[0]].dtype}")
    if infinite:
        complaints.append(f"{len(infinite)} with numbers that are not finite, first {infinite[0]}")
    if complaints:
        raise ValueError(
            f"the tensors are not those of {architecture} with these settings: "
            + "; ".join(complaints)
        )
