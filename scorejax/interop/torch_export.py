# SPDX-License-Identifier: Apache-2.0
"""Weights of ours as the state dictionary that the official PyTorch network loads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from scorejax.interop.fit import require_fit
from scorejax.interop.torch_weights import Turn, build, correspondence


def export_torch(
    architecture: str, variables: Mapping[str, Any], **hyper: Any
) -> dict[str, np.ndarray]:
    """The official tensors, in the official order: `load_torch` undone, exactly.

    `variables` are those of the module that `load_torch` returns for the same settings. The table
    `sigmas`, a buffer of every official network, follows from sigma_min, sigma_max and num_scales.
    An unconditional network has label weights there, which act on nothing and are left out.

    Raises: ValueError for an unknown architecture or setting, and for parameters that are missing,
    surplus or misshapen.
    """
    net = build(architecture, hyper)
    table = correspondence(net, hyper)
    params = variables["params"]
    if hyper.get("scale_by_sigma", False):
        params = params.get("network", {})
    parts = [(path, name, turn) for name, (path, turn) in table.ours.items()]
    state = {"sigmas": _agreed_sigmas(variables, hyper)}
    return state | official_tensors(architecture, params, parts, table.shapes)


def official_tensors(
    architecture: str,
    params: Mapping[str, Any],
    parts: Sequence[tuple[str, str, Turn]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """The official tensors by name, of `shapes`, from (our parameter, official tensor, turn).

    Several of ours may be parts of one of theirs. Raises: ValueError as `require_fit`.
    """
    flat = {k: np.asarray(v) for k, v in flatten_dict(dict(params), sep="/").items()}
    ours = {path: _our_shape(shapes[name], turn) for path, name, turn in parts}
    require_fit(architecture, flat, ours, set())
    state: dict[str, np.ndarray] = {}
    for path, name, turn in parts:
        tensor = state.setdefault(name, np.empty(shapes[name], flat[path].dtype))
        _turn_back(flat[path], turn, tensor)
    return state


def published_sigmas(hyper: Mapping[str, Any]) -> np.ndarray:
    """Noise levels (num_scales,) from the largest to the smallest, by the official formula."""
    largest, smallest = hyper.get("sigma_max", 50), hyper.get("sigma_min", 0.01)
    return np.exp(np.linspace(np.log(largest), np.log(smallest), hyper.get("num_scales", 1000)))


def _agreed_sigmas(variables: Mapping[str, Any], hyper: Mapping[str, Any]) -> np.ndarray:
    sigmas = published_sigmas(hyper)
    given = variables.get("constants", {}).get("sigmas")
    # Ours are in single precision.
    if given is not None and not (
        given.shape == sigmas.shape and np.allclose(given, sigmas, rtol=1e-5)
    ):
        raise ValueError(
            f"the noise levels of the variables, {given[0]:.6g} ... {given[-1]:.6g}, are not those "
            f"of sigma_min, sigma_max and num_scales, {sigmas[0]:.6g} ... {sigmas[-1]:.6g}"
        )
    return sigmas


def _our_shape(official: tuple[int, ...], turn: Turn) -> tuple[int, ...]:
    return turn.tensor(np.broadcast_to(np.float32(0), official)).shape


def turned_back(array: np.ndarray, turn: Turn, shape: tuple[int, ...]) -> np.ndarray:
    """The official tensor of which `array` is the whole."""
    tensor = np.empty(shape, array.dtype)
    _turn_back(array, turn, tensor)
    return tensor


def _turn_back(array: np.ndarray, turn: Turn, tensor: np.ndarray) -> None:
    """Puts ours into the official tensor: a turn moves entries, and shows on numbers where from."""
    places = turn.tensor(np.arange(tensor.size).reshape(tensor.shape))
    tensor.ravel()[places.ravel()] = array.ravel()
