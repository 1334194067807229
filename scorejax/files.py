# SPDX-License-Identifier: Apache-2.0
"""Writes files atomically: whoever reads one, now or after a crash, finds it old or new, whole."""

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
    """Opens a temporary file that replaces `path` when the block ends without an error.

    Creates the directory. The file is on disk before it takes its name, so that not even a power
    failure leaves an empty one. Raises: OSError if the directory cannot be written.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def save_text(path: str | os.PathLike, text: str) -> None:
    """Writes text in UTF-8. Raises: OSError if the directory cannot be written."""
    with written_whole(path) as file:
        file.write(text.encode())


def save_npz(path: str | os.PathLike, **arrays: ArrayLike) -> None:
    """Writes arrays by name to an npz file. Raises: OSError if the directory cannot be written."""
    with written_whole(path) as file:
        np.savez(file, **arrays)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file's content, or the names in a directory, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
