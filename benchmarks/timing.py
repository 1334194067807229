# SPDX-License-Identifier: Apache-2.0
"""Comparing programs that share a machine: turns in one process, medians of ratios.

A round gives each contender one turn, in an order that rotates, so that whatever slows the machine
down slows all of them; a ratio is taken within a round. Before each turn the process sleeps until
the last contender's threads do: PyTorch's OpenMP pool spins for up to 9 ms after its last work
(with OMP_WAIT_POLICY=passive it does not, but is then 1.7 times slower at small convolutions),
XLA's pool does not spin. A first round warms up and is not counted.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

THREADS = 2
PAUSE = 0.03  # seconds, three times as long as the idle pool was seen to spin

# Both libraries count the cores that this process may use as they start.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ["JAX_PLATFORMS"] = "cpu"
import launch  # noqa: E402, F401  (XLA's flags and the allocator's settings, for both libraries)

# A cold cache, for honest compile times.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="torchinductor_")

Times = dict[str, list[float]]


def compare(
    contenders: dict[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds per call of each contender in each round; calls block until they are done.

    `time.process_time` as the clock counts the processor time of all threads.
    """
    times: Times = {name: [] for name in contenders}
    names = list(contenders)
    for first in range(1 + rounds):
        for offset in range(len(names)):
            name = names[(first + offset) % len(names)]
            times[name].append(_turn(contenders[name], calls, clock))
    return {name: taken[1:] for name, taken in times.items()}


def _turn(call: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    time.sleep(PAUSE)
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def seconds(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(title: str, times: Times, notes: dict[str, str], ours: Sequence[str]) -> None:
    """Prints a row per contender: median seconds, and its time over that of each of ours.

    Above 1 ours is faster. In brackets the smallest and the largest ratio of any round.
    """
    print(f"\n{title}")
    width = max(map(len, times))
    heads = "".join(f"  {'/ ' + name:>22}" for name in ours)
    print(f"{'':{width}}  {'median':>9}{heads}")
    for name, taken in times.items():
        ratios = "".join(f"  {ratio(taken, times[reference]):>22}" for reference in ours)
        median = statistics.median(taken)
        print(f"{name:{width}}  {median:8.4f}s{ratios}  {notes.get(name, '')}", flush=True)


def ratio(taken: Sequence[float], reference: Sequence[float]) -> str:
    """Median, smallest and largest ratio over the rounds."""
    ratios = [a / b for a, b in zip(taken, reference, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
