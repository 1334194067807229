# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever the program is killed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name once all is written; its directory is made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def save_npz(path: str | os.PathLike, **arrays: ArrayLike) -> None:
    """Writes arrays by name to an npz file, which is there whole or not at all."""
    with written_whole(path) as file:
        np.savez(file, **arrays)
