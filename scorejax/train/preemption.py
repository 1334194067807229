# SPDX-License-Identifier: Apache-2.0
"""Notice of termination: clusters and cloud machines send SIGTERM some seconds before the end."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notice_of_termination() -> Iterator[Callable[[int], bool]]:
    """Yields noticed(step): whether SIGTERM has arrived and training should end at this step.

    Several processes agree on the step through JAX's preemption notice; each must ask at every
    step. A single process outside the main thread cannot catch signals and never notices.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    arrived = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield lambda step: arrived.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)
