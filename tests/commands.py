# SPDX-License-Identifier: Apache-2.0
"""Runs commands as a shell would, from the root of the repository, and many mistakes at once."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
}
TWO_DEVICES = {"JAX_NUM_CPU_DEVICES": "2"}
SAME_FLAGS = {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
"""Those of this process, where its answers are compared with a command's."""


def run(command: str, *argv: str, timeout: float = 600, **environment: str) -> str:
    """What `launch.<command>` prints; it has to succeed."""
    result = subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *argv],
        capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT | environment, check=False,
        timeout=timeout,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def outcomes_of(cases: dict[str, tuple[str, list[str]]], **environment: str) -> dict[str, dict]:
    """By name, the outcomes that `tests.bad_input` gives of cases (command, argv)."""
    asked = [{"command": command, "argv": argv} for command, argv in cases.values()]
    answered = subprocess.run(
        [sys.executable, "-m", "tests.bad_input"],
        input=json.dumps(asked), capture_output=True, text=True, cwd=ROOT,
        env=ENVIRONMENT | environment, check=True,
    )  # fmt: skip
    return dict(zip(cases, json.loads(answered.stdout), strict=True))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_on_two(command: str, *argv: str, timeout: float = 600, **environment: str) -> list[str]:
    """What `launch.<command> --distributed` prints in each of two processes started as by srun."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    slurm |= {"JAX_COORDINATOR_PORT": str(free_port()), "JAX_NUM_CPU_DEVICES": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"launch.{command}", *argv, "--distributed"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=ENVIRONMENT | environment | slurm | dict.fromkeys(
                ("SLURM_PROCID", "SLURM_LOCALID"), str(index)
            ),
        )
        for index in range(2)
    ]  # fmt: skip
    outcomes = [process.communicate(timeout=timeout) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    # The library that connects the processes prints too.
    return [re.sub(r"^\[Gloo\].*\n", "", stdout, flags=re.MULTILINE) for stdout, _ in outcomes]
