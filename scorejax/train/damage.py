# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints: found by their checksums, set aside, and reported in one line."""

import sys

from scorejax import files
from scorejax.files import AnyPath
from scorejax.train import integrity, parallel

DAMAGED = "damaged"
COMMITTED = "commit_success.txt"
"""File that orbax writes last in a step; in a bucket a directory without it is no checkpoint."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""In the names of directories on a disk that orbax deletes when a run starts."""


def saved_steps(directory: AnyPath) -> list[int]:
    """The steps that are saved in a directory, in order."""
    return sorted(int(path.name) for path in _steps(directory) if not is_unfinished(path))


def unfinished_steps(directory: AnyPath) -> list[AnyPath]:
    """The directories of saves that are going on or were killed."""
    if files.is_local(directory):
        return list(directory.glob(f"*{UNFINISHED}*"))
    return [path for path in _steps(directory) if is_unfinished(path)]


def is_unfinished(step: AnyPath) -> bool:
    """Whether a step in a bucket is being written; on a disk it then has another name."""
    return not files.is_local(step) and not files.exists(step / COMMITTED)


def _steps(directory: AnyPath) -> list[AnyPath]:
    # A bucket that cannot be reached must not pass for one without steps.
    if not files.exists(directory) or (files.is_local(directory) and not directory.is_dir()):
        return []
    with files.reaching(directory):
        return [path for path in directory.iterdir() if path.name.isdecimal()]


def set_damaged_aside(directory: AnyPath) -> None:
    """Moves damaged steps to <workdir>/damaged, so that those before them are the newest.

    The first process does it, while all wait. Says so in one line.
    Raises: RuntimeError if no step is sound; then nothing is moved.
    """
    parallel.by_first(lambda: _set_damaged_aside(directory))


def _set_damaged_aside(directory: AnyPath) -> None:
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
        files.move_tree(directory / str(step), target)
    if damaged:
        warn(f"{describe(damaged)}, moved to {target.parent}; using step {sound[-1]}.")


def describe(damaged: dict[int, str]) -> str:
    """One phrase for damaged steps and what is wrong with each."""
    details = ", ".join(f"{step} ({report})" for step, report in sorted(damaged.items()))
    return f"damaged checkpoint {details}"


def warn(line: str) -> None:
    """Prints a line on stderr."""
    print(line, file=sys.stderr, flush=True)
