# SPDX-License-Identifier: Apache-2.0
"""Of two processes in one workdir the second is refused, and a dead one blocks nobody."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest
from toy_system import CONFIG, build

from scorejax.train import lock
from scorejax.train.loop import train

# Without JAX, since that takes seconds to import: what `held` does in another process.
HOLDER = """
import fcntl, json, os, socket, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
file.flush()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / lock.LOCK)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def test_a_workdir_in_use_is_refused_untouched_until_its_process_dies(holder, tmp_path):
    name = f"process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(BlockingIOError, match=f"is in use: {name} trains there") as raised:
        train(build(CONFIG), CONFIG, tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(BlockingIOError, match=name):
        lock.require_free(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lock.LOCK]
    holder.kill()
    holder.wait()
    assert (tmp_path / lock.LOCK).exists()  # stale
    lock.require_free(tmp_path)
    with lock.held(tmp_path):
        named = json.loads((tmp_path / lock.LOCK).read_text())
        assert named == {"host": socket.gethostname(), "process": os.getpid()}
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_a_lock_alone_is_removed_with_it(tmp_path):
    with pytest.raises(ValueError), lock.held(tmp_path / "new"):
        raise ValueError
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path / "new"):
        (tmp_path / "new" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_without_locks_of_the_file_system_a_live_process_is_recognised(
    holder, tmp_path, monkeypatch
):
    def lockf(*_):
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on"), lock.held(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with lock.held(tmp_path):
        pass
