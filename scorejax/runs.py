# SPDX-License-Identifier: Apache-2.0
"""Runs as inputs: the config and the trained variables in a working directory.

The one way to another run, for commands, benchmarks, guidance by a classifier and systems whose
first stage is a run of its own.
"""

import os
from typing import NamedTuple

from scorejax.train import checkpoint
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
    restored = checkpoint.restore_for_inference(workdir, step=step)
    return Run(read_config(workdir), restored.variables, restored.step)
