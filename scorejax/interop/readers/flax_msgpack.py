# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints that flax wrote in the msgpack format, as arrays named `Module_0/kernel`.

Unlike flax.serialization, this reader limits the lengths of lists that a few bytes may ask for.
"""

import math
from typing import Any

import msgpack
import numpy as np

from scorejax.interop.readers.torch_save import numbers

MAX_DEPTH = 16
_LIMITS = {"max_array_len": 64, "max_map_len": 100_000}
_DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "bf16", "int64": "<i8",
    "int32": "<i4", "uint32": "<u4", "uint8": "u1", "bool": "?",
}  # fmt: skip
_ARRAY, _SCALAR = 1, 3


def read_flax(data: Any) -> dict[str, Any]:
    """Weights `raw` and `averaged` by name, and the `step`, of a checkpoint in a buffer.

    Reads training states of the JAX score-SDE code, and bare trees of parameters.
    Raises: ValueError with one line if the data are truncated, damaged or of another kind.
    """
    try:
        tree = msgpack.unpackb(data, ext_hook=_array, strict_map_key=False, **_LIMITS)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(
            f"truncated or damaged msgpack, or of another kind ({str(error)[:100]})."
        ) from None
    if not isinstance(tree, dict):
        raise ValueError("msgpack without a tree of parameters.")
    if "params_ema" not in tree and "optimizer" not in tree:
        return {"raw": flatten(tree.get("params", tree)), "averaged": None}
    optimizer = tree.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    step = tree.get("step", 0)
    return {
        "raw": None if target is None else flatten(target),
        "averaged": flatten(tree["params_ema"]) if "params_ema" in tree else None,
        "step": step.item() if isinstance(step, np.ndarray) and step.size == 1 else step,
    }


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by their path, `a/b`. Raises: ValueError if a leaf is no array, or there are none."""
    arrays: dict[str, np.ndarray] = {}
    pending = [("", tree, 0)]
    while pending:
        path, node, depth = pending.pop()
        if isinstance(node, np.ndarray):
            arrays[path] = node
        elif isinstance(node, dict) and depth < MAX_DEPTH:
            below = [(f"{path}/{key}" if path else f"{key}", value) for key, value in node.items()]
            pending += [(name, value, depth + 1) for name, value in reversed(below)]
        else:
            raise ValueError(f"{path[:80] or 'the root'} is a {type(node).__name__}, not an array.")
    if not arrays:
        raise ValueError("there are no parameters in it.")
    return arrays


def _array(code: int, data: bytes) -> np.ndarray | None:
    if code not in (_ARRAY, _SCALAR):
        return None
    shape, dtype, buffer = msgpack.unpackb(data, raw=True, **_LIMITS)
    name = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else str(dtype)
    if name not in _DTYPES:
        raise ValueError(f"an array of type {name[:40]}")
    if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
        raise ValueError(f"an array of impossible shape {str(shape)[:80]}")
    return numbers(buffer, _DTYPES[name], math.prod(shape)).reshape(shape)
