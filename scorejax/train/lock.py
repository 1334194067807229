# SPDX-License-Identifier: Apache-2.0
"""One process trains in a workdir: a second one is refused in a line that names the first.

The operating system holds the lock of the file training.lock and lets go of it when the process
ends, however it ends, so a killed run never blocks its resumption. On a network file system the
lock holds for other hosts as well. Where a file system has no locks, a live process of this host is
recognised by its number. Buckets have no locks.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator

import jax

from scorejax import files

LOCK = "training.lock"


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a workdir on a disk, which it creates, for the first process of a run.

    Removes the file at the end, and the directory if it made it and nothing else is there.
    Raises: BlockingIOError, one line with host and process, if another process holds it; OSError,
    one line, if the directory cannot be written.
    """
    path = files.absolute(workdir)
    if not files.is_local(path) or jax.process_index() > 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            if not path.exists():
                path.mkdir(parents=True)
                stack.callback(_remove_if_empty, path)
            stack.enter_context(_locked(path))
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(f"cannot write to workdir {path}: {files.reason(error)}") from error
        yield


def require_free(workdir: str | os.PathLike) -> None:
    """Raises BlockingIOError, as `held`, if another process trains in a workdir."""
    path = files.absolute(workdir)
    if files.is_local(path) and (path / LOCK).exists():
        with held(path):
            pass


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock file, with this process's name in it, and removes it."""
    with contextlib.ExitStack() as stack:
        while True:
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, lock)
            _lock(lock, path)
            # Whoever held the lock before may have removed the file since it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path / LOCK), os.fstat(lock)):
                    break
        stack.callback((path / LOCK).unlink, missing_ok=True)
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(_this_process()).encode(), 0)
        yield


def _remove_if_empty(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _lock(lock: int, path: pathlib.Path) -> None:
    """Locks the file, or raises BlockingIOError that names the holder."""
    holder = _holder(lock)
    try:
        # Not flock, which a forked worker would keep when this process is killed.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN) and not _is_alive(holder):
            return
        name = "another process"
        if holder:
            name = f"process {holder['process']} on {holder['host']}"
        raise BlockingIOError(
            f"workdir {path} is in use: {name} trains there. Wait until it ends, or choose another "
            "workdir."
        ) from None


def _this_process() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "process": os.getpid()}


def _holder(lock: int) -> dict[str, str | int] | None:
    """Host and process in a lock file; None if it has been made just now."""
    try:
        holder = json.loads(os.pread(lock, 4096, 0))
        return {name: holder[name] for name in ("host", "process")}
    except (ValueError, KeyError, TypeError):
        return None


def _is_alive(holder: dict[str, str | int] | None) -> bool:
    """Whether a holder is another process of this host, and runs."""
    if holder is None or holder["host"] != socket.gethostname() or holder == _this_process():
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It runs, as another user.
    return True
