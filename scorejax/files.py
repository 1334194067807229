# SPDX-License-Identifier: Apache-2.0
"""Paths on disks and in buckets of Google Cloud Storage, and files that are never half written.

`as_path` is the one way from text to a path. A bucket has no directories, no renaming and no
appending, but an object appears in it whole; the functions here hide the difference. Whoever reads
a file that they write, now or after a crash, finds it old or new, whole.
"""

import contextlib
import errno
import importlib.util
import io
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

if TYPE_CHECKING:
    from etils import epath

AnyPath: TypeAlias = "pathlib.Path | epath.Path"
"""A local path, or one in a bucket; both have the methods of pathlib that this package uses."""

BUCKETS = "gs://"
IN_MEMORY = 2**28
"""Most bytes of an array of `scratch` in memory."""
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def as_path(path: str | os.PathLike) -> AnyPath:
    """The path that a text names: local, or gs://bucket/name in Google Cloud Storage.

    Raises: ValueError with one line for any other scheme, without a bucket, or if gcsfs is missing.
    """
    text = os.fspath(path)
    if not _SCHEME.match(text):
        return pathlib.Path(text)
    if not text.startswith(BUCKETS):
        remedy = "needs to be a local path or gs://bucket/name"
        if text.startswith("gs:/"):
            remedy += "; pathlib.Path drops a slash, so pass the text itself"
        raise ValueError(f"{text} {remedy}.")
    if not text.removeprefix(BUCKETS).strip("/") or text.startswith(f"{BUCKETS}/"):
        raise ValueError(f"{text} names no bucket; it needs to be gs://bucket/name.")
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError(
            f"{text} needs the package gcsfs, which is not installed: pip install gcsfs, or "
            "scorejax with its extra gcs."
        )
    import fsspec
    from etils import epath

    # Arrays are written past gcsfs, by tensorstore and by other hosts; a listing that it remembers
    # lacks them. Read when gcsfs connects for the first time.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def is_local(path: AnyPath) -> bool:
    """Whether a path of `as_path` is on a file system of this machine."""
    return isinstance(path, pathlib.Path)


def absolute(path: str | os.PathLike) -> AnyPath:
    """The absolute path that a text names. Raises: ValueError as `as_path`."""
    # epath takes gs://bucket for a relative path: absolute() would name a local directory ./gs:.
    path = as_path(path)
    return path.absolute() if is_local(path) else path


def require_local(path: str | os.PathLike, use: str) -> pathlib.Path:
    """A local path. Raises: ValueError, one line that names its `use`, if it is in a bucket."""
    path = as_path(path)
    if not is_local(path):
        raise ValueError(f"{use} needs a local path; got {path}.")
    return path


@contextlib.contextmanager
def reaching(path: AnyPath) -> Iterator[None]:
    """Turns whatever a bucket raises within the block into an OSError whose strerror is one line.

    The libraries beneath raise errors of their own kinds where credentials or the network fail.
    Errors of local paths, and FileNotFoundError, pass unchanged.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise OSError(errno.EIO, reason(error), str(path)) from error


def reason(error: BaseException) -> str:
    """The operating system's description of an error if it has one, else the error's first line."""
    while error.__cause__ is not None and not isinstance(error, OSError):
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    known = [os.strerror(code) for code in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EFBIG)]
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return next((words for words in known if words in str(error)), first_line)


@contextlib.contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` when the block ends without an error.

    Creates the directory. On a disk the file is there before it takes its name, so that not even a
    power failure leaves an empty one; for a bucket it is held in memory and then sent.
    Raises: OSError if the directory cannot be written.
    """
    path = as_path(path)
    if not is_local(path):
        buffer = io.BytesIO()
        yield buffer
        with reaching(path):
            path.write_bytes(buffer.getvalue())
        return
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


def scratch(shape: Sequence[int], dtype: DTypeLike, *, in_memory: int = IN_MEMORY) -> np.ndarray:
    """Zeros of a shape: in memory, or on disk if they take more than `in_memory` bytes.

    The file is a temporary one, in the directory of the variable TMPDIR, which vanishes with the
    array; the system keeps as much of it in memory as is free.
    Raises: OSError if the disk has not enough space.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= in_memory:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile() as file:
        # Space that is found missing as a page is written would end the process by a signal.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "w+", shape=tuple(shape)).view(np.ndarray)


def save_text(path: str | os.PathLike, text: str) -> None:
    """Writes text in UTF-8. Raises: OSError if the directory cannot be written."""
    with written_whole(path) as file:
        file.write(text.encode())


def save_npz(path: str | os.PathLike, **arrays: ArrayLike) -> None:
    """Writes arrays by name to an npz file. Raises: OSError if the directory cannot be written."""
    with written_whole(path) as file:
        np.savez(file, **arrays)


def disguise(path: str | os.PathLike) -> str:
    """Names a file that is not what its name says: a pointer of Git LFS or a page of HTML.

    Downloads leave such files. The answer completes "<path> is ..."; it is "" for any other file.
    """
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if start.startswith(b"version https://git-lfs.github.com/spec/"):
            return "a pointer of Git LFS, not the file itself: git lfs pull gets it"
        if start.startswith((b"<!doctype html", b"<html", b"<head")):
            return "a page of HTML, not the file itself: download that again, and look at the page"
    return ""


def why_unreadable(path: str | os.PathLike, error: BaseException) -> str:
    """Says in one line why a file could not be read: its `disguise`, or else the error's words."""
    if kind := disguise(path):
        return f"it is {kind}"
    return " ".join(str(error).split()) or type(error).__name__


def sync(path: AnyPath) -> None:
    """Waits until a file's content, or the names in a directory, are on disk.

    A bucket confirms what it has stored when it is written.
    """
    if not is_local(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot do it for a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(handle)


def load_npz(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the arrays of an npz file by name. Raises: FileNotFoundError; OSError."""
    path = as_path(path)
    with reaching(path), path.open("rb") as opened, np.load(opened) as file:
        return dict(file)


def import_parquet() -> ModuleType:
    """The pyarrow package, an optional dependency. Raises: ValueError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            "parquet files need pyarrow, which is not installed: pip install pyarrow, or convert "
            "the file"
        ) from None
    return pyarrow


def exists(path: AnyPath) -> bool:
    """Whether a file or a directory is there. Raises: OSError if its bucket cannot be reached."""
    if is_local(path):
        return path.exists()
    # The path's own method answers False where credentials or the network fail.
    with reaching(path):
        try:
            path.stat()
        except FileNotFoundError:
            return False
    return True


def files_below(directory: AnyPath) -> list[AnyPath]:
    """All files in a directory and the directories in it, in no order."""
    if is_local(directory):
        return [path for path in directory.rglob("*") if path.is_file()]
    import fsspec

    with reaching(directory):
        system, root = fsspec.core.url_to_fs(str(directory))
        names = system.find(root)  # One request for a thousand files.
    # A browser makes an empty object, of a name that ends in a slash, for an empty folder.
    return [directory / name.removeprefix(f"{root}/") for name in names if name[-1] != "/"]


def move_tree(source: AnyPath, target: AnyPath) -> None:
    """Moves a directory to `target`, where another may be, and creates the parent.

    In a bucket its files are copied before any is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_tree(target)
    if is_local(source):
        source.rename(target)
        return
    for path in files_below(source):
        path.copy(target / path.relative_to(source))
    remove_tree(source)


def remove_tree(directory: AnyPath) -> None:
    """Deletes a directory as far as that is possible, without an error."""
    if is_local(directory):
        shutil.rmtree(directory, ignore_errors=True)
        return
    with contextlib.suppress(Exception):
        directory.rmtree(missing_ok=True)
