# SPDX-License-Identifier: Apache-2.0
"""The first lines of a run: what is trained, on what, on which devices, where, from which step."""

from collections.abc import Mapping
from typing import Any

import jax

from scorejax.files import AnyPath
from scorejax.train import integrity
from scorejax.train.checkpoint import DIRECTORY
from scorejax.train.damage import saved_steps
from scorejax.train.evaluations import Evaluations
from scorejax.train.settings import Settings
from scorejax.train.state import TrainState
from scorejax.train.system import System

_NAMES_OF_DATA = ("dataset", "layout", "table", "environment")
"""Keys of a config that name its data; the first one that it has does."""


def opening(
    system: System,
    config: Mapping[str, Any],
    settings: Settings,
    state: TrainState,
    workdir: AnyPath,
) -> list[str]:
    """Lines about a run that goes on from `state`: data, parameters, devices, workdir and step."""
    source = system.source
    data = [str(config[key]) for key in _NAMES_OF_DATA if config.get(key)][:1]
    if folder := config.get("data_dir"):
        data.append(f"in {folder}")
    if num := getattr(source, "num_examples", None):
        data.append(f"{num:,} examples")
    data.append(f"{settings.batch_size:,} a step")
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kinds = sorted({device.device_kind for device in jax.devices()})
    return [
        f"data        {', '.join(data)}",
        *(f"            {note}" for note in getattr(source, "notes", ())),
        f"parameters  {num_parameters:,}",
        f"devices     {jax.device_count()} x {', '.join(kinds)}",
        f"workdir     {workdir}",
        step_line(int(state.step), settings),
    ]


def step_line(step: int, settings: Settings) -> str:
    """Says where a run stands, and how a finished one goes on."""
    last = settings.num_train_steps
    if step >= last:
        return f"already at step {step} of {last}: raise num_train_steps to go on"
    return f"resuming at step {step} of {last}" if step else f"a new run of {last} steps"


def finished(workdir: AnyPath, settings: Settings) -> int | None:
    """The newest step of a run that has nothing left to do; None for any other.

    It has reached `num_train_steps`, its checkpoint is sound, and no evaluation is due. The answer
    is for one process: several would have to ask together.
    """
    step = max(saved_steps(workdir / DIRECTORY), default=-1)
    if step < settings.num_train_steps or jax.process_count() > 1:
        return None
    if integrity.find_damage(workdir / DIRECTORY / str(step)):
        return None
    due = settings.evaluates_at(step) and Evaluations(workdir).is_due(step)
    return None if due else step
