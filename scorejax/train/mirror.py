# SPDX-License-Identifier: Apache-2.0
"""Files that grow line by line, for a bucket, where nothing can be appended.

The files grow in a temporary directory of this machine; `send` writes each one that has changed to
the bucket, whole. A file of n bytes that is sent k times while it grows therefore costs about
n k / 2 bytes of traffic; a kill loses what came after the last `send`.
"""

import pathlib
import shutil
import tempfile

from scorejax import files
from scorejax.files import AnyPath


class Mirror:
    """A local directory, `local`, whose files `send` writes to a directory of a bucket."""

    def __init__(self, target: AnyPath) -> None:
        self._target = target
        self._sent: dict[pathlib.Path, tuple[int, int]] = {}
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="scorejax_log_"))

    def fetch(self, name: str) -> None:
        """Copies a file of the bucket to `local`, if there is one. Raises: OSError."""
        if files.exists(self._target / name):
            with files.reaching(self._target):
                (self.local / name).write_bytes((self._target / name).read_bytes())

    def send(self) -> None:
        """Writes the files that have changed since they were sent. Raises: OSError, one line."""
        for path in files.files_below(self.local):
            state = path.stat()
            version = state.st_size, state.st_mtime_ns
            if self._sent.get(path) != version:
                with files.written_whole(self._target / path.relative_to(self.local)) as file:
                    file.write(path.read_bytes())
                self._sent[path] = version

    def remove(self) -> None:
        """Deletes `local`."""
        shutil.rmtree(self.local, ignore_errors=True)
