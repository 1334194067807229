# SPDX-License-Identifier: Apache-2.0
"""Long computations in parts, each on disk as soon as it is done: a killed one goes on.

The directory is named by all that is computed from: another seed, other weights find nothing there.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from scorejax.files import save_npz
from scorejax.typing import PyTree

Arrays = dict[str, np.ndarray]


class Parts:
    """The parts of one computation, kept beside the file `out` that it will write."""

    def __init__(self, out: str | os.PathLike, identity: Mapping[str, Any], arrays: PyTree = ()):
        """All that the numbers depend on: `identity`, as JSON takes it, and a tree of arrays."""
        digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode())
        for leaf in map(np.asarray, jax.tree.leaves(arrays)):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
        self.directory = pathlib.Path(f"{out}.parts-{digest.hexdigest()[:8]}")

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The part of that name: from disk if it is there, else made and put there whole."""
        path = self.directory / f"{name}.npz"
        if path.exists():
            with np.load(path) as file:
                return dict(file)
        part = {key: np.asarray(value) for key, value in make().items()}
        save_npz(path, **part)
        return part

    def remove(self) -> None:
        """To be called once the whole is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
