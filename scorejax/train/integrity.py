# SPDX-License-Identifier: Apache-2.0
"""Checksums of the files of a checkpoint, and of frozen arrays.

Orbax stores none: most flipped bits would load as other numbers. The list is written while the
directory still has its temporary name, so that every finished checkpoint has one;
`sha256sum -c checksums.sha256` reads it too.
"""

import concurrent.futures
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from scorejax import files
from scorejax.files import AnyPath
from scorejax.typing import PyTree

CHECKSUMS = "checksums.sha256"
_FILES_AT_ONCE = 8
# Written after the list, as the directory gets its final name; neither holds any of the state.
_UNLISTED = {CHECKSUMS, "_CHECKPOINT_METADATA", "commit_success.txt"}


def write_checksums(directory: AnyPath) -> None:
    """Lists the checksum of every file below a directory in a file of that directory."""
    digests = _digests(directory, _files(directory))
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (directory / CHECKSUMS).write_text("".join(lines))


def sync_files(directory: AnyPath) -> None:
    """Waits until every file and directory below a directory, and itself, is on disk."""
    if files.is_local(directory):
        with concurrent.futures.ThreadPoolExecutor() as pool:  # a disk does several at once
            list(pool.map(files.sync, (directory, *directory.rglob("*"))))


def find_damage(directory: AnyPath) -> str | None:
    """Names the first file that differs from the list of checksums; None if none does."""
    try:
        text = (directory / CHECKSUMS).read_text()
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except UnicodeDecodeError:
        return f"{CHECKSUMS} has changed"
    listed = dict(reversed(line.split("  ", 1)) for line in text.splitlines() if "  " in line)
    found = _files(directory)
    if text != "".join(f"{digest}  {name}\n" for name, digest in listed.items()):
        return f"{CHECKSUMS} has changed"
    for name in sorted(listed.keys() ^ set(found)):
        return f"{name} is {'missing' if name in listed else 'not in the list'}"
    for name, digest in _digests(directory, found).items():
        if digest is None:
            return f"{name} is gone"
        if digest != listed[name]:
            return f"{name} has changed"
    return None


def tree_checksums(tree: PyTree) -> dict[str, str]:
    """SHA-256 of the arrays below each key of a tree, by key; "arrays" for a tree without keys.

    Raises: ValueError for a random key.
    """
    digests: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key = jax.tree_util.keystr(path[:1], simple=True) or "arrays"
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            raise ValueError(f"frozen arrays {key!r} hold a random key; pass jax.random.key_data.")
        # Training sees float64 of the host as float32, unless double precision is on.
        array = np.asarray(leaf)
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
        digest = digests.setdefault(key, hashlib.sha256())
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        array = np.ascontiguousarray(array)
        digest.update(array.view(np.uint8).reshape(-1))
    return {key: digest.hexdigest() for key, digest in digests.items()}


def _files(directory: AnyPath) -> list[str]:
    names = (path.relative_to(directory).as_posix() for path in files.files_below(directory))
    return sorted(name for name in names if name not in _UNLISTED)


def _digests(directory: AnyPath, names: Sequence[str]) -> dict[str, str | None]:
    """Checksums of files by name, read in parallel: an answer of a bucket takes long to begin."""
    with concurrent.futures.ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        digests = pool.map(lambda name: _digest(directory / name), names)
        return dict(zip(names, digests, strict=True))


def _digest(path: AnyPath) -> str | None:
    """SHA-256 of a file; None if it is gone, since a run that goes on removes old steps."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
