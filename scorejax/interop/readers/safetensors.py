# SPDX-License-Identifier: Apache-2.0
"""Reads the safetensors format: the length of the header, a JSON header, and the numbers."""

import json
import math
from typing import Any, BinaryIO

import numpy as np

from scorejax.interop.readers.torch_save import numbers

MAX_HEADER_SIZE = 100 * 2**20
"""Largest header in bytes that the format allows."""
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bf16", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_safetensors(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    """The tensors of a file of `size` bytes by name; bfloat16 as float32.

    Raises: ValueError with one line if the header is invalid or does not fit the file.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_SIZE):
        raise ValueError(f"a header of {length} bytes in a file of {size}.")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise ValueError("a safetensors header that is not JSON.") from None
    if not isinstance(header, dict):
        raise ValueError("a safetensors header that is not a mapping.")
    header.pop("__metadata__", None)
    start, tensors, total = 8 + length, {}, 0
    for name, entry in header.items():
        dtype, shape, begin, end = _parse(name, entry)
        total += end - begin
        # Tensors may not overlap, so together they fit the file.
        if end > size - start or total > size - start:
            raise ValueError(f"tensor {name[:80]} lies outside the file, which may be truncated.")
        file.seek(start + begin)
        try:
            tensors[name] = numbers(file.read(end - begin), dtype, math.prod(shape)).reshape(shape)
        except ValueError as error:
            raise ValueError(f"tensor {name[:80]}: {error}.") from None
    return tensors


def _parse(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, first byte and end of a tensor."""
    whole = lambda values: all(type(value) is int and value >= 0 for value in values)
    try:
        dtype, shape, offsets = (entry[key] for key in ("dtype", "shape", "data_offsets"))
        begin, end = offsets
        if not whole([*shape, begin, end]) or begin > end or len(shape) > 8:
            raise ValueError
        return _DTYPES[dtype], tuple(shape), begin, end
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name[:80]} has an impossible header.") from None
