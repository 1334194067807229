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
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scorejax.files import AnyPath, as_path, exists, load_npz, remove_tree, save_npz
from scorejax.train import parallel
from scorejax.typing import PyTree

Arrays = dict[str, np.ndarray]
VERSION = 2
"""To be raised when the same inputs give other results, so that no computation mixes the two."""


class Parts:
    """Parts of one computation, in a directory beside the file `out` that it will write."""

    def __init__(self, out: str | os.PathLike, identity: Mapping[str, Any], arrays: PyTree = ()):
        """`identity` (JSON values) and `arrays` (a tree) need to hold every input of the result."""
        # Samplers of the caller's precision follow JAX's setting.
        precision = jax.config.jax_default_matmul_precision
        identity = {"version": VERSION, "jax_precision": precision, **identity}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for leaf in map(np.asarray, jax.tree.leaves(arrays)):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
        self.directory = as_path(f"{out}.parts-{digest.hexdigest()[:8]}")

    def has(self, name: str) -> bool:
        """Whether the part `name` is on disk; every process needs to ask."""
        return parallel.first_answer(exists(self._path(name)))

    def load(self, name: str) -> Arrays:
        """The part `name`. Raises: FileNotFoundError if it is not on disk; OSError."""
        return load_npz(self._path(name))

    def save(self, name: str, part: Arrays) -> None:
        """Saves a part whole, by the first process; all of them call it. Raises: OSError."""
        parallel.by_first(lambda: save_npz(self._path(name), **part))

    def remove(self) -> None:
        """Deletes the parts once no process reads them; call it when `out` is written."""
        parallel.first_answer(True)  # Another process may be loading the last part.
        parallel.by_first(lambda: remove_tree(self.directory))

    def _path(self, name: str) -> AnyPath:
        return self.directory / f"{name}.npz"
