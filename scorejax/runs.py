# SPDX-License-Identifier: Apache-2.0
"""Runs as inputs: the config and the trained variables in a working directory.

The one way to another run, for commands, benchmarks, guidance by a classifier and systems whose
first stage is a run of its own.
"""

import os
from typing import NamedTuple

import orbax.checkpoint as ocp

from scorejax import files
from scorejax.files import AnyPath
from scorejax.train import integrity
from scorejax.train.checkpoint import DIRECTORY, silence_orbax
from scorejax.train.damage import describe, saved_steps, warn
from scorejax.train.workdir import Config, load_config
from scorejax.typing import Variables


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

    A newer, damaged checkpoint is passed over with a line on stderr. Writes nothing.
    Raises: FileNotFoundError, RuntimeError or ValueError with one line if there is none to use.
    """
    config = read_config(workdir)
    sound = _sound_checkpoint(files.absolute(workdir) / DIRECTORY, step)
    silence_orbax()
    with ocp.StandardCheckpointer() as checkpointer:
        if (sound / "published").is_dir():
            published = checkpointer.restore(sound / "published")
            variables = published["params"], published["model_state"]
        else:
            model = checkpointer.restore(sound / "model")
            variables = model["ema_params"], model["model_state"]
    return Run(config, variables, int(sound.name))


def _sound_checkpoint(directory: AnyPath, step: int | None) -> AnyPath:
    """The newest checkpoint whose checksums hold, or that of `step`."""
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
            return directory / str(candidate)
        damaged[candidate] = damage
    raise RuntimeError(f"no sound checkpoint in {directory}: {describe(damaged)}.")
