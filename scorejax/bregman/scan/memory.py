# SPDX-License-Identifier: Apache-2.0
"""Memory that is free for the points of an index."""

import os
from collections.abc import Sequence

import jax


def free_bytes(devices: Sequence[jax.Device]) -> int:
    """Free memory of each device; CPU devices share that of the host."""
    statistics = devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return _free_host_bytes() // len(devices)


def _free_host_bytes() -> int:
    """Available memory as Linux reports it, or half of the memory on other systems."""
    try:
        with open("/proc/meminfo") as file:
            sizes = dict(line.split(":") for line in file)
        return 1024 * int(sizes["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
