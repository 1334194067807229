# SPDX-License-Identifier: Apache-2.0
"""Notice of termination: clusters and cloud machines send SIGTERM some seconds before the end.

The first Ctrl-C counts as such a notice, and interrupts once the run has saved; the second
interrupts without. Python hears of either when the devices return from a compiled call.
"""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_INTERRUPTED = (
    b"interrupted: the run saves after this call and ends; Ctrl-C again ends it without.\n"
)


@contextlib.contextmanager
def notice_of_termination() -> Iterator[Callable[[], bool]]:
    """Yields noticed(): whether SIGTERM or Ctrl-C has arrived and training should end here.

    Several processes, each of which asks after every call, agree on the call at which they end;
    one that restarts by itself does not count as the others do, but cannot train with them either.
    A single process outside the main thread cannot catch signals and never notices.
    Raises: KeyboardInterrupt when the block ends, if Ctrl-C has arrived at the only process.
    """
    several = jax.process_count() > 1
    arrived = threading.Event()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            # JAX catches SIGTERM where there are several processes, and tells all of them.
            notify = (lambda: signal.raise_signal(signal.SIGTERM)) if several else arrived.set
            stack.enter_context(_first_interrupt(notify, raises=not several))
            if not several:
                stack.enter_context(_handler(signal.SIGTERM, lambda *_: arrived.set()))
        if several:
            # JAX compares the number with the one agreed on, the largest asked so far plus one:
            # a number that is skipped, such as a step between two calls, may be that one.
            calls = itertools.count(1)
            yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        else:
            yield arrived.is_set


@contextlib.contextmanager
def _first_interrupt(notify: Callable[[], None], *, raises: bool) -> Iterator[None]:
    """Makes the first Ctrl-C call `notify`, and interrupt after the block if `raises`.

    A program that ignores Ctrl-C goes on ignoring it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return

    arrived = threading.Event()

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        arrived.set()
        os.write(2, _INTERRUPTED)  # a handler may interrupt a print, which allows no other
        notify()

    with _handler(signal.SIGINT, interrupted):
        yield
    if raises and arrived.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handler(number: signal.Signals, handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
