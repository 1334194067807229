# SPDX-License-Identifier: Apache-2.0
"""Runs commands as a shell would, from the root of the repository, and many mistakes at once."""

import json
import os
import pathlib
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
