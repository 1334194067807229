# SPDX-License-Identifier: Apache-2.0
"""Runs commands with their real main function, each in a fork of one process that has JAX imported.

    python -m tests.bad_input < cases.json > outcomes.json

A case is {"command", "argv"}; an outcome {"status", "stderr", "seconds", "compilations"}. A fork is
as good as a new process, flags and all, and saves the imports.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
import time
import traceback

import launch  # noqa: F401  First: it sets what JAX reads as it starts.

IMPORTED = (
    "scorejax.evaluate.density_report",
    "scorejax.evaluate.pictures",
    "scorejax.evaluate.sample_report",
    "scorejax.interop",
    "scorejax.train.loop",
    "sklearn.datasets",
)


def run(command: str, argv: list[str]) -> dict:
    with tempfile.TemporaryFile("w+") as stderr, tempfile.TemporaryFile("w+") as count:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            os.dup2(stderr.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(_main(command, argv, count))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - start
        for file in (stderr, count):
            file.seek(0)
        compilations = len(count.read())
        return {
            "status": status,
            "stderr": stderr.read(),
            "seconds": seconds,
            "compilations": compilations,
        }


def _main(command: str, argv: list[str], count) -> int:
    import jax

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            count.write("x")
            count.flush()

    jax.monitoring.register_event_duration_secs_listener(listen)
    sys.argv = [command, *argv]
    try:
        runpy.run_module(f"launch.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def main() -> None:
    # Imported once here, and not in every fork: they are most of the time of a mistake.
    from scorejax import systems

    for name in (*IMPORTED, *(f"scorejax.systems.{name}" for name in systems.known())):
        importlib.import_module(name)
    json.dump([run(case["command"], case["argv"]) for case in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
