# SPDX-License-Identifier: Apache-2.0
"""Commands, one thin file each. Importing this package sets the variables that JAX reads."""

import ctypes
import glob
import importlib.util
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def _only_cpu() -> bool:
    """True if JAX will probably find no accelerator; JAX itself is not started."""
    if os.environ.get("JAX_PLATFORMS", "") not in ("", "cpu"):
        return False
    return not glob.glob("/dev/nvidia*") and importlib.util.find_spec("libtpu") is None


def _keep_memory() -> None:
    """Makes glibc's allocator reuse the memory of large arrays, unless the user configured it.

    Otherwise every buffer of a step is mapped anew, 25,000 page faults a step of a small network:
    a fifth of its time.
    """
    if any(name.startswith("MALLOC_") or name == "LD_PRELOAD" for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, 1 << 30)


if _only_cpu():
    _keep_memory()
    # 3x3 convolutions are 1.3 to 1.8 times faster with it. Flags that the user set are kept.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=dot")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/scorejax/jax"))
