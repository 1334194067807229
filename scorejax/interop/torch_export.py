# SPDX-License-Identifier: Apache-2.0
"""Weights of ours as the state dictionary that the official PyTorch network loads."""

from collections.abc import Mapping
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
    flat = {k: np.asarray(v) for k, v in flatten_dict(dict(params), sep="/").items()}
    official = {path: name for name, (path, _) in table.ours.items()}
    shapes = {
        path: _our_shape(table.shapes[name], table.ours[name][1]) for path, name in official.items()
    }
    require_fit(architecture, flat, shapes, set())
    state = {"sigmas": _agreed_sigmas(variables, hyper)}
    for name, (path, turn) in table.ours.items():
        state[name] = turned_back(flat[path], turn, table.shapes[name])
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
    """The official tensor: a turn only moves entries, and shows on their numbers where to."""
    places = turn.tensor(np.arange(array.size).reshape(shape))
    tensor = np.empty(array.size, array.dtype)
    tensor[places.ravel()] = array.ravel()
    return tensor.reshape(shape)
