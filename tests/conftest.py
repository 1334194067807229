# SPDX-License-Identifier: Apache-2.0
"""What must stand before JAX starts: two fake devices, strict shapes, a compilation cache."""

import gc
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable, Iterator

# Collectives on fake CPU devices need a thread each; with fewer they deadlock.
os.environ.setdefault("PJRT_NPROC", "16")
# Most of the time of a test is compilation. Without the optimisations that make code faster and not
# more right, here and in the programs that tests start, it takes a third of the time.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)
# Programs that a test starts inherit the cache, and compile nothing that another has compiled.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".jax_cache")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Lines of source of each operation are a fifth of the time of its translation; nobody reads them.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "false")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import numpy as np
import pytest

from tests.slow import SINGLE_AND_DOUBLE

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Pictures that tests shrink are not to lie among those of the user.
_PICTURES = tempfile.TemporaryDirectory(prefix="scorejax-pictures-")
os.environ["SCOREJAX_CACHE_DIR"] = _PICTURES.name

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish() -> None:
    # Modules and tests stay until the end: collections of garbage need not go through them again,
    # nor as often as for a program of a few small objects. It saves a sixteenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Ctrl-C interrupts, even if a shell has started the tests in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=SINGLE_AND_DOUBLE)
def precision(request) -> Iterator[str]:
    """Both precisions, one after the other, for tests against golden files."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Loads tests/goldens/<name>.npz: numbers computed with the official implementations."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(ROOT / "tests" / "goldens" / f"{name}.npz") as file:
            return dict(file)

    return load
