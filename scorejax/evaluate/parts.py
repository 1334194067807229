# SPDX-License-Identifier: Apache-2.0
"""Long computations in parts, each on disk as soon as it is done: a killed one goes on.

The directory is named by what is computed, so that another seed, say, finds nothing there.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scorejax.evaluate.atomic import written_whole

Arrays = dict[str, np.ndarray]


class Parts:
    """The parts of one computation, kept beside the file `out` that it will write."""

    def __init__(self, out: str | os.PathLike, identity: Mapping[str, Any]):
        """`identity` is all that the numbers depend on, as JSON takes it."""
        text = json.dumps(dict(identity), sort_keys=True)
        self.directory = pathlib.Path(
            f"{out}.parts-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        )

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The part of that name: from disk if it is there, else made and put there whole."""
        path = self.directory / f"{name}.npz"
        if path.exists():
            with np.load(path) as file:
                return dict(file)
        part = {key: np.asarray(value) for key, value in make().items()}
        with written_whole(path) as file:
            np.savez(file, **part)
        return part

    def remove(self) -> None:
        """To be called once the whole is written."""
        shutil.rmtree(self.directory, ignore_errors=True)
