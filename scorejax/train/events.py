# SPDX-License-Identifier: Apache-2.0
"""Event files of scalars, which TensorBoard reads."""

import pathlib
import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class EventFile:
    """A new event file in a directory; TensorBoard hides older events from `first_step` on.

    After `flush` every event is in the file. (The queue of tensorboardX's SummaryWriter is emptied
    by another thread, for which its flush does not wait: a kill lost what was flushed.)
    """

    def __init__(self, directory: pathlib.Path, *, first_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        self._writer.write_event(Event(step=first_step, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(step=first_step, session_log=start))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes a number."""
        event = Event(wall_time=time.time(), step=step, summary=scalar(name, value))
        self._writer.write_event(event)

    def flush(self) -> None:
        """Puts all events on the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()
