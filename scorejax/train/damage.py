# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints: found by their checksums, set aside, and reported in one line."""

import pathlib
import shutil
import sys

import jax
from jax.experimental import multihost_utils

from scorejax.train import integrity

DAMAGED = "damaged"


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps that have a directory, in order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def set_damaged_aside(directory: pathlib.Path) -> None:
    """Moves damaged steps to <workdir>/damaged, so that those before them are the newest.

    Says so in one line. Raises: RuntimeError if no step is sound; then nothing is moved.
    """
    if jax.process_index() == 0:
        steps = saved_steps(directory)
        reports = {step: integrity.find_damage(directory / str(step)) for step in steps}
        damaged = {step: report for step, report in reports.items() if report}
        sound = [step for step in steps if step not in damaged]
        if damaged and not sound:
            raise RuntimeError(
                f"{describe(damaged)}; no other is left. Move {directory} away to start anew."
            )
        for step in damaged:
            target = directory.parent / DAMAGED / str(step)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (directory / str(step)).rename(target)
        if damaged:
            warn(f"{describe(damaged)}, moved to {target.parent}; using step {sound[-1]}.")
    multihost_utils.sync_global_devices("set_damaged_aside")


def describe(damaged: dict[int, str]) -> str:
    """One phrase for damaged steps and what is wrong with each."""
    details = ", ".join(f"{step} ({report})" for step, report in sorted(damaged.items()))
    return f"damaged checkpoint {details}"


def warn(line: str) -> None:
    """Prints a line on stderr."""
    print(line, file=sys.stderr, flush=True)
