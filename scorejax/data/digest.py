# SPDX-License-Identifier: Apache-2.0
"""Digests of arrays, by which a run knows its inputs again on another machine."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8


def digest(arrays: Iterable[np.ndarray]) -> UInt8[np.ndarray, "32"]:
    """SHA-256 of the types, shapes and bytes of arrays in their order: 32 bytes."""
    parts = (f"{array.dtype} {array.shape}".encode() + array.tobytes() for array in arrays)
    return digest_bytes(b"".join(parts))


def digest_bytes(content: bytes) -> UInt8[np.ndarray, "32"]:
    """SHA-256 as an array of 32 bytes."""
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
