# SPDX-License-Identifier: Apache-2.0
"""Runs as inputs: the config and the trained variables in a working directory.

The one way to another run, for commands, benchmarks, guidance by a classifier and systems whose
first stage is a run of its own.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import orbax.checkpoint as ocp

from scorejax import files
from scorejax.files import AnyPath
from scorejax.train import integrity, parallel
from scorejax.train.checkpoint import DIRECTORY, silence_orbax
from scorejax.train.damage import describe, saved_steps, warn
from scorejax.train.workdir import Config, load_config, load_kept, require_same_arrays
from scorejax.typing import Array, Variables


class Run(NamedTuple):
    """A run's config, the published variables of a checkpoint, and the checkpoint's step."""

    config: Config
    variables: Variables
    step: int


def read_config(workdir: str | os.PathLike) -> Config:
    """The config of the run in `workdir`; loads no arrays.

    Raises: FileNotFoundError or ValueError with one line if there is no run, or no readable config.
    """
    return load_config(workdir)


def open(workdir: str | os.PathLike, step: int | None = None) -> Run:
    """The run in `workdir` at its newest sound checkpoint, or at `step`; arrays are NumPy's.

    A newer, damaged checkpoint is passed over with a line on stderr. Writes nothing. Several
    processes all open the checkpoint that the first one finds, even if the run goes on.
    Raises: FileNotFoundError, RuntimeError or ValueError with one line if there is none to use.
    """
    config = read_config(workdir)
    directory = files.absolute(workdir) / DIRECTORY
    sound = directory / str(parallel.by_first(lambda: _sound_step(directory, step)))
    silence_orbax()
    with ocp.StandardCheckpointer() as checkpointer:
        if files.exists(sound / "published"):
            published = checkpointer.restore(sound / "published")
            variables = published["params"], published["model_state"]
        else:
            model = checkpointer.restore(sound / "model")
            variables = model["ema_params"], model["model_state"]
    return Run(config, variables, int(sound.name))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float | None]]:
    """The metrics of the run's steps and evaluations, oldest first; none if it has no log.

    Names are train/<name> and eval/<name>; None stands for a value that is not finite.
    """
    from scorejax.train import logging  # Imported here: its writers take a second.

    return logging.read_metrics(files.absolute(workdir) / logging.METRICS)


def kept(workdir: str | os.PathLike) -> dict[str, Array]:
    """The arrays that the run keeps for commands, see `System.kept`; {} if it keeps none.

    Raises: ValueError with one line that names the file if it is damaged.
    """
    return load_kept(workdir)


def require_same_inputs(
    workdir: str | os.PathLike, inputs: Mapping[str, Array], origins: Mapping[str, str]
) -> None:
    """Raises ValueError with one line unless a model's input arrays are those of the run's start.

    `origins` are config keys and the paths of the files, for the line.
    """
    require_same_arrays(workdir, integrity.tree_checksums(dict(inputs)), origins)


def _sound_step(directory: AnyPath, step: int | None) -> int:
    """The newest step whose checksums hold, or `step` if they hold there."""
    steps = saved_steps(directory)
    if not steps or (step is not None and step not in steps):
        there = f"; there is {', '.join(map(str, steps))}" if steps else ""
        which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise FileNotFoundError(f"{which} in {directory}{there}.")
    damaged = {}
    for candidate in reversed(steps) if step is None else [step]:
        damage = integrity.find_damage(directory / str(candidate))
        if damage is None:
            if damaged:
                warn(f"{describe(damaged)}; using step {candidate}.")
            return candidate
        damaged[candidate] = damage
    raise RuntimeError(f"no sound checkpoint in {directory}: {describe(damaged)}.")
