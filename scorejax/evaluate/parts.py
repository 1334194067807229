# SPDX-License-Identifier: Apache-2.0
"""Saves a long computation part by part, so that it resumes after it is killed.

The name of the directory contains a hash of all inputs. Another seed or other weights therefore
never reuse a part.

With several processes the first one writes the parts and decides which of them exist. All read
them, from a file system that they share.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from scorejax.files import AnyPath, as_path, exists, load_npz, remove_tree, save_npz
from scorejax.train import parallel
from scorejax.typing import PyTree

Arrays = dict[str, np.ndarray]


class Parts:
    """Parts of one computation, in a directory beside the file `out` that it will write."""

    def __init__(self, out: str | os.PathLike, identity: Mapping[str, Any], arrays: PyTree = ()):
        """`identity` (JSON values) and `arrays` (a tree) need to hold every input of the result."""
        digest = hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode())
        for leaf in map(np.asarray, jax.tree.leaves(arrays)):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
        self.directory = as_path(f"{out}.parts-{digest.hexdigest()[:8]}")

    def has(self, name: str) -> bool:
        """Whether the part `name` is on disk; every process needs to ask."""
        return parallel.first_answer(exists(self._path(name)))

    def get(self, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """Loads the part `name` if it is on disk; otherwise computes it and saves it atomically."""
        if self.has(name):
            return load_npz(self._path(name))
        part = {key: np.asarray(value) for key, value in compute().items()}
        if jax.process_index() == 0:
            save_npz(self._path(name), **part)
        return part

    def remove(self) -> None:
        """Deletes the parts; call it once `out` is written."""
        if jax.process_index() == 0:
            remove_tree(self.directory)

    def _path(self, name: str) -> AnyPath:
        return self.directory / f"{name}.npz"
