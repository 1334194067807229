# SPDX-License-Identifier: Apache-2.0
"""The idx format, in which MNIST and Fashion-MNIST are published."""

import gzip
import pathlib

import numpy as np


def read_idx(path: pathlib.Path) -> np.ndarray | None:
    """The array of a file of bytes, or of the same name and .gz; None if neither is there.

    Raises: ValueError, one line, for a file of another kind.
    """
    zipped = path.with_name(path.name + ".gz")
    if zipped.exists():
        data = gzip.decompress(zipped.read_bytes())
    elif path.exists():
        data = path.read_bytes()
    else:
        return None
    # Header: two zero bytes, the type (8 = uint8), the number of axes, then each length.
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of bytes")
    lengths = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(lengths)
